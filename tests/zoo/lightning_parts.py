"""What the Lightning trainings of the tests share: examples, a loader, a module, a trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

EXAMPLES = 48


def data(examples: int = EXAMPLES) -> TensorDataset:
    """Vectors of 6 values, and whether their sum is positive."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(examples, 6, generator=generator)
    return TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(data(), **{"batch_size": 8, "shuffle": True} | options)


class Module(L.LightningModule):
    """A classifier; `configure` replaces its `configure_optimizers`."""

    def __init__(self, configure: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        self.configure = configure

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self(batch[0])
        self.log("val_loss", cross_entropy(out, batch[1]), prog_bar=True)
        self.log("val_accuracy", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        if self.configure is not None:
            return self.configure(self)
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def quiet_trainer(**options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"accelerator": "cpu", "enable_checkpointing": False} | quiet | options
    return L.Trainer(**options)
