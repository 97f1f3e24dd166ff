"""Train a classifier from the command line: `lightning_cli.py fit --data.batch_size=32`."""

import hashlib

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset


class StripesDataModule(LightningDataModule):
    """Images with horizontal or vertical stripes.

    Args:
        batch_size: examples in a batch
        num_examples: examples in the training set
    """

    def __init__(self, batch_size: int = 32, num_examples: int = 384):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str):
        generator = torch.Generator().manual_seed(0)
        count = self.hparams.num_examples + 64
        labels = torch.randint(2, (count,), generator=generator)
        stripes = (torch.arange(64) % 8 < 4).float().expand(64, 64)
        images = torch.where(labels.view(-1, 1, 1).bool(), stripes, stripes.T)[:, None]
        images = images + torch.randn(count, 3, 64, 64, generator=generator)
        self.train = TensorDataset(images[:-64], labels[:-64])
        self.val = TensorDataset(images[-64:], labels[-64:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.hparams.batch_size)


class Classifier(LightningModule):
    """A convolutional classifier.

    Args:
        channels: output channels of the first layer
        lr: learning rate
    """

    def __init__(self, channels: int = 24, lr: float = 0.001):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.SiLU(),
            nn.GroupNorm(4, channels),
            nn.AvgPool2d(8),
            nn.Flatten(),
            nn.Linear(channels * 64, 2),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        accuracy = (self.net(images).argmax(dim=1) == labels).float().mean()
        self.log("accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def cli_main():
    cli = LightningCLI(
        Classifier,
        StripesDataModule,
        seed_everything_default=7,
        save_config_callback=None,
        trainer_defaults={
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
        },
    )
    if cli.subcommand == "fit" and cli.trainer.is_global_zero:
        weights = parameters_to_vector(cli.model.parameters()).detach().cpu().numpy()
        print("loss", repr(cli.trainer.callback_metrics["loss"].item()))
        print("weights", hashlib.sha256(weights.tobytes()).hexdigest())


if __name__ == "__main__":
    cli_main()
