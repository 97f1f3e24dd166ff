"""Small deterministic trainings whose final weights can be compared bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

Task = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], list[Any]]


def classify(model: nn.Module, batch: Any) -> Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def mlp(dtype: torch.dtype = torch.float64, *, dropout: float = 0.2) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 40), nn.Tanh(), nn.Dropout(dropout), nn.Linear(40, 40), nn.Tanh()
    )
    model = nn.Sequential(model, nn.Linear(40, 3)).to(dtype)
    return model, classify, _batches((12,), dtype)


def convolution(dtype: torch.dtype = torch.float64) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()
    )
    model = nn.Sequential(model, nn.Linear(8 * 16, 3)).to(dtype)
    return model, classify, _batches((3, 8, 8), dtype)


def batch_norm(dtype: torch.dtype = torch.float64) -> Task:
    model, loss, batches = convolution(dtype)
    model[0][1] = nn.BatchNorm2d(8).to(dtype)  # type: ignore[index, operator]
    return model, loss, batches


class Words(nn.Module):
    """A transformer over texts of several lengths, padded with 0, which is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.layer(self.embed(tokens), src_key_padding_mask=tokens == 0)
        return self.head(hidden)  # type: ignore[no-any-return]


def next_word(model: nn.Module, tokens: Tensor) -> Tensor:
    logits, wanted = model(tokens[:, :-1]), tokens[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=0)


def count_words(tokens: Tensor) -> float:
    return float((tokens[:, 1:] != 0).sum())


def transformer(dtype: torch.dtype = torch.float64) -> Task:
    torch.manual_seed(0)
    model = Words().to(dtype)
    batches = []
    for size in SIZES:
        tokens = torch.randint(1, 20, (size, 9))
        for text in tokens:
            text[random.Random(size).randint(4, 9) :] = 0
        batches.append(tokens)
    return model, next_word, batches


SIZES = (16, 16, 13, 16, 7)


def _batches(shape: tuple[int, ...], dtype: torch.dtype) -> list[Any]:
    return [(torch.randn(n, *shape, dtype=dtype), torch.randint(3, (n,))) for n in SIZES]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.003),
}


def elastic(
    task: Task, optimizer: str = "AdamW", **options: Any
) -> tuple[nn.Module, rb.Elastic, list[Any]]:
    model, loss, batches = task
    if loss is next_word:
        options |= {"count": count_words, "split": lambda batch, n: batch.split(n)}
    step = rb.Elastic(model, OPTIMIZERS[optimizer](model), loss, **options)
    return model, step, batches


def weights(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    apart = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)
    )
    return (apart / sum(float(b.double().square().sum()) for b in other)) ** 0.5
