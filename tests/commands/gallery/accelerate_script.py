"""Train a segmentation model with Accelerate; runs alone and with `accelerate launch`."""

import argparse
import hashlib

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset


class CirclesDataset(Dataset):
    """Noisy images of a circle, and its mask."""

    def __init__(self, num_examples, seed):
        generator = torch.Generator().manual_seed(seed)
        self.centers = torch.randint(12, 52, (num_examples, 2), generator=generator)
        self.radii = torch.randint(5, 12, (num_examples,), generator=generator)
        self.seed = seed

    def __len__(self):
        return len(self.radii)

    def __getitem__(self, idx):
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        cy, cx = self.centers[idx]
        mask = ((y - cy) ** 2 + (x - cx) ** 2 < self.radii[idx] ** 2).float()[None]
        generator = torch.Generator().manual_seed(self.seed + idx)
        return {"pixel_values": mask + torch.randn(3, 64, 64, generator=generator), "mask": mask}


def training_function(config, args):
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
    )
    set_seed(config["seed"])

    train_dataloader = DataLoader(
        CirclesDataset(384, seed=0), shuffle=True, batch_size=config["batch_size"]
    )
    eval_dataloader = DataLoader(CirclesDataset(64, seed=10_000), batch_size=config["batch_size"])

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config["lr"],
        epochs=config["num_epochs"],
        steps_per_epoch=len(train_dataloader),
    )
    criterion = nn.BCEWithLogitsLoss()
    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )

    for epoch in range(config["num_epochs"]):
        model.train()
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                loss = criterion(model(batch["pixel_values"]), batch["mask"])
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()

        model.eval()
        correct = total = 0
        for batch in eval_dataloader:
            with torch.no_grad():
                outputs = model(batch["pixel_values"])
            predictions, masks = accelerator.gather_for_metrics((outputs > 0, batch["mask"]))
            correct += (predictions == masks.bool()).sum().item()
            total += masks.numel()
        accelerator.print(f"epoch {epoch}: pixel accuracy {correct / total:.4f}")

    if accelerator.is_main_process:
        digest = hashlib.sha256()
        for tensor in accelerator.unwrap_model(model).state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        print("loss", repr(loss.item()))
        print("weights", digest.hexdigest())
    accelerator.end_training()


def main():
    parser = argparse.ArgumentParser(description="Simple example of a training script.")
    parser.add_argument("--batch_size", type=int, default=16, help="Batch size per process.")
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=2)
    parser.add_argument("--mixed_precision", default=None, choices=["no", "fp16", "bf16"])
    parser.add_argument("--cpu", action="store_true", help="If passed, will train on the CPU.")
    args = parser.parse_args()
    config = {
        "lr": 5e-3,
        "num_epochs": args.num_epochs,
        "seed": 42,
        "batch_size": args.batch_size,
    }
    training_function(config, args)


if __name__ == "__main__":
    main()
