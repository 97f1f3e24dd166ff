"""A training loop for `benchmarks.agent`: one of five small models, on data made from a seed.

It prints nothing. `--times FILE` gets the seconds of processor time of every step. With
`--reference FILE` the loop also computes, every fifth step of the later half, the gradients of
eight parts of the batch at the same weights, for all parameters; the training is the same.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

PARTS, EVERY = 8, 5


class LanguageModel(nn.Module):
    """A small decoder; the head's weights are those of the embedding if `tied`."""

    def __init__(self, words: int, length: int, tied: bool) -> None:
        super().__init__()
        width = 64
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 128, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        hidden = self.layers(self.words(ids) + self.places(places), mask=self.mask, is_causal=True)
        return self.head(hidden).transpose(1, 2)


def images(count: int, size: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(10, (count,))
    means = torch.randn(10, 3, size, size)
    return 0.5 * means[labels] + torch.randn(count, 3, size, size), labels


def made(name: str) -> tuple[nn.Module, TensorDataset]:
    """Return a model and its data."""
    torch.manual_seed(0)
    if name == "mlp":
        x = torch.randn(8192, 64)
        y = (x[:, :10] + 0.5 * torch.randn(8192, 10)).argmax(1)
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), TensorDataset(x, y)
    if name.startswith("language"):
        steps = torch.randint(1, 4, (2048, 33)).cumsum(1)
        ids = (steps + torch.randint(50, (2048, 1))) % 50
        model = LanguageModel(50, 32, tied=name.endswith("tied"))
        return model, TensorDataset(ids[:, :-1], ids[:, 1:])
    norm: Any = nn.BatchNorm2d if name == "batch norm" else nn.Identity
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), norm(32), nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), norm(64), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    return model, TensorDataset(*images(4096, 16))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--reference", type=Path)
    arguments = parser.parse_args()
    model, data = made(arguments.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    lossf = nn.CrossEntropyLoss()
    torch.manual_seed(1)
    seconds: list[float] = []
    pairs: list[tuple[float, float]] = []
    size = arguments.batch // arguments.accumulation
    while len(seconds) < arguments.steps:
        parts: list[Any] = []
        began = time.process_time()
        for x, y in DataLoader(data, size, shuffle=True, drop_last=True):
            (lossf(model(x), y) / arguments.accumulation).backward()
            parts.append((x, y))
            if len(parts) < arguments.accumulation:
                continue
            step = len(seconds)
            if arguments.reference and step % EVERY == 0 and 2 * step >= arguments.steps:
                pairs.append(reference(model, lossf, parts))
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - began)
            parts = []
            if len(seconds) == arguments.steps:
                break
            began = time.process_time()
    if arguments.times:
        arguments.times.write_text(json.dumps(seconds))
    if arguments.reference:
        arguments.reference.write_text(json.dumps(pairs))


def reference(model: nn.Module, lossf: Any, batches: list[Any]) -> tuple[float, float]:
    """Return |G|² and tr(Σ) from the gradients of eight parts of the step's batch.

    Normalization layers see each part alone, as micro-batches do; their running statistics are put
    back.
    """
    x, y = (torch.cat(columns) for columns in zip(*batches, strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = []
    for inputs, labels in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
        gradients = torch.autograd.grad(lossf(model(inputs), labels), parameters)
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    gradients_of_parts = torch.stack(found).double()
    single = float(gradients_of_parts.square().sum(1).mean())
    whole = float(gradients_of_parts.mean(0).square().sum())
    n = len(x) // PARTS
    variance = (single - whole) * n * PARTS / (PARTS - 1)
    return single - variance / n, variance


if __name__ == "__main__":
    main()
