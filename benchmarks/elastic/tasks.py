"""Small trainings whose ends can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Task = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], list[Any]]
SILENT: Callable[[Any], None] = lambda event: None  # noqa: E731
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.003),
}


class Words(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, activation=activation
        )
        self.head = nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)))  # type: ignore[no-any-return]


def _next(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _classified(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def made(name: str, dtype: torch.dtype) -> Task:
    torch.manual_seed(0)
    sizes = [32, 32, 27, 32, 9]
    if name.startswith("transformer"):
        # A ReLU turns a rounding into a step where a value is within 1e-7 of zero; GELU has none.
        words = Words("gelu" if name.endswith("GELU") else "relu")
        return words.to(dtype), _next, [torch.randint(50, (n, 12)) for n in sizes]
    if name == "convolution":
        shape: tuple[int, ...] = (3, 12, 12)
        layers = [nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3)]
        model = nn.Sequential(*layers, nn.GroupNorm(4, 16), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(16 * 64, 5))
    else:
        shape = (20,)
        model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        model.append(nn.Linear(64, 5))
    batches = [(torch.randn(n, *shape, dtype=dtype), torch.randint(5, (n,))) for n in sizes]
    return model.to(dtype), _classified, batches
