"""`NoiseScale` against closed forms and per-example gradients, and what it costs.

`python -m benchmarks.noise` takes a few minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rightbatch as rb
from benchmarks._record import median, save
from benchmarks.workloads import data_folder, factory
from rightbatch._noise import exact_noise_scale

REPEATS, WINDOWS = 50, 60
WIDTH, SIGMA = 50, 1.0
POINTS = (0, 60, 240, 960)  # steps of training, at which the weights are held still
POPULATION, MICRO, PARTS, LOOKS = 12_000, 16, 8, 100
COST_STEPS = 60


def main() -> None:
    results = {"regression": regression(), "cnn": cnn(), "cost": cost()}
    save("noise", {"results": results}, table(results))


def regression() -> dict[str, Any]:
    """Linear regression, whose noise scale is (d + 1) + d σ²/|δ|², at distance |δ| = 1."""
    truth = (WIDTH + 1) + WIDTH * SIGMA**2
    found = []
    for seed in range(REPEATS):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Linear(WIDTH, 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()[0, 0] = 1.0

        def draw(n: int, generator: Any = generator) -> tuple[Tensor, Tensor]:
            x = torch.randn(n, WIDTH, generator=generator)
            return x, SIGMA * torch.randn(n, 1, generator=generator)

        noise = rb.NoiseScale(model, window=WINDOWS)
        for _ in range(WINDOWS):
            model.zero_grad()
            for _ in range(PARTS):
                x, y = draw(MICRO)
                (0.5 * (model(x) - y).square().mean()).backward()
                noise.micro_batch(n=MICRO)
            noise.step()
        assert noise.estimate is not None
        found.append(noise.estimate.to_dict())
    return {"truth": truth, "found": found}


def cnn() -> dict[str, list[dict[str, Any]]]:
    """Small CNNs on CIFAR-10 images, at points of training, against per-example gradients.

    One as it is tuned in `benchmarks.tune`, and one whose gradient soon is lost in noise.
    """
    with tempfile.TemporaryDirectory() as folder:
        tuned = factory("cifar", Path(folder)).load()().model
    torch.manual_seed(0)
    return {"averaging head": _cnn(tuned, 0.02, 16), "wide head": _cnn(_network(), 0.05, 32)}


def _cnn(model: nn.Module, rate: float, batch_size: int) -> list[dict[str, Any]]:
    images, labels = _images()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    found: list[dict[str, Any]] = []
    for step in range(max(POINTS) + 1):
        if step in POINTS:
            gradient, noise = _exact(model, images, labels)
            watching = rb.NoiseScale(model, population=POPULATION)
            for _ in range(LOOKS):
                model.zero_grad()
                for chosen in _shuffled(generator)[: MICRO * PARTS].split(MICRO):
                    _loss(model, (images[chosen], labels[chosen])).backward()
                    watching.micro_batch(n=MICRO)
                watching.step()
            watching.close()
            assert watching.estimate is not None
            exact = noise / gradient
            found.append({"step": step, "exact": exact} | watching.estimate.to_dict())
            print(f"  step {step}: exact {exact:.1f}, {watching.estimate}", file=sys.stderr)
        chosen = _shuffled(generator)[:batch_size]
        optimizer.zero_grad()
        _loss(model, (images[chosen], labels[chosen])).backward()
        optimizer.step()
    return found


def cost() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Processor time of steps: plain, watched, and plain again, in turns.

    Loops that accumulate are watched by `NoiseScale`, loops with one backward pass by
    `NormalizationNoise`.
    """
    images, labels = _images(MICRO * PARTS)
    with tempfile.TemporaryDirectory() as folder:
        text = factory("shakespeare", Path(folder)).load()()
    tokens = text.collate([text.data[index] for index in range(MICRO * PARTS)])
    cases: dict[str, tuple[nn.Module, Any, Any]] = {
        "CNN": (_network(), _loss, (images, labels)),
        "transformer": (text.model, text.loss, tokens),
    }
    return {
        name: {
            "accumulating": _cost_of(*case, parts=PARTS),
            "one backward pass": _cost_of(*case, parts=1),
        }
        for name, case in cases.items()
    }


def _cost_of(model: nn.Module, loss: Any, batch: Any, *, parts: int) -> dict[str, list[float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pieces = rb.split_batch(batch, MICRO * PARTS // parts)
    seconds: dict[str, list[float]] = {"plain": [], "watched": [], "plain again": []}
    for _ in range(COST_STEPS):
        for kind, samples in seconds.items():
            watching: Any = None
            if kind == "watched" and parts > 1:
                watching = rb.NoiseScale(model)
            elif kind == "watched":
                watching = rb.NormalizationNoise(model)
            total = 0.0
            for _ in range(1 if parts > 1 else 4):  # of which the latter watches one
                started = time.process_time()
                optimizer.zero_grad()
                for piece in pieces:
                    loss(model, piece).backward()
                    if watching is not None and parts > 1:
                        watching.micro_batch(n=MICRO)
                if watching is not None:
                    watching.step()
                optimizer.step()
                total += time.process_time() - started
            samples.append(total)
            if watching is not None:
                watching.close()
    return seconds


def table(results: dict[str, Any]) -> str:
    truth, found = results["regression"]["truth"], results["regression"]["found"]
    values = [f["value"] for f in found if f["value"] is not None]
    middle = median([abs(value / truth - 1) for value in values])
    covered = sum(f["low"] <= truth <= (f["high"] or float("inf")) for f in found)
    text = "| noise scale | exact | `NoiseScale` | error |\n|---|---|---|---|\n"
    text += (
        f"| linear regression, {REPEATS} repeats of {WINDOWS} steps | {truth:.1f} (closed form) "
        f"| {median(values):.1f} (median) | {middle:.1%} (median of repeats); the interval covers "
        f"the truth in {covered} of {len(found)} |\n"
    )
    points = [(name, point) for name, found in results["cnn"].items() for point in found]
    for name, point in points:
        value = point["value"]
        estimate = f"{value:.1f} ({point['low']:.1f} to {point['high']:.1f})" if value else "bound"
        error = f"{value / point['exact'] - 1:+.1%}" if value else f"above {point['low']:.1f}"
        text += (
            f"| CNN with {name}, after {point['step']} steps | {point['exact']:.1f} (per example) "
            f"| {estimate} | {error} |\n"
        )
    text += (
        f"\n| loop over batches of {MICRO * PARTS} | watched by | costs | plain against plain |\n"
        "|---|---|---|---|\n"
    )
    for name, kinds in results["cost"].items():
        for kind, seconds in kinds.items():
            over = _cell(overhead(seconds))
            pairs = zip(seconds["plain again"], seconds["plain"], strict=True)
            band = _cell(_interval([other / one - 1 for other, one in pairs]))
            accumulates = kind == "accumulating"
            how = f"{name}, {PARTS} parts" if accumulates else f"{name}, {kind}"
            watcher = "`NoiseScale`" if accumulates else "`NormalizationNoise`"
            text += f"| {how} | {watcher} | {over} | {band} |\n"
    return text


def overhead(seconds: dict[str, list[float]]) -> tuple[float, float, float]:
    """How much longer a watched step takes than a plain one: median, low and high end."""
    again = zip(seconds["plain"], seconds["plain again"], strict=True)
    plain = [(one + other) / 2 for one, other in again]
    return _interval([w / p - 1 for w, p in zip(seconds["watched"], plain, strict=True)])


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Median with its 95% interval by order statistics."""
    ordered, count = sorted(values), len(values)
    half = 0.98 * count**0.5
    return ordered[count // 2], ordered[int(count / 2 - half)], ordered[int(count / 2 + half)]


def _cell(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.2%} ({found[1]:+.2%} to {found[2]:+.2%})"


def _images(count: int = POPULATION) -> tuple[Tensor, Tensor]:
    with np.load(data_folder() / "cifar10_small.npz") as stored:
        images = torch.from_numpy(stored["train_images"][:count]).float() / 255 - 0.5
        labels = torch.from_numpy(stored["train_labels"][:count]).long()
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    return images, labels


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _exact(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """|G|² and tr(Σ) of the population itself, since that is what its batches are drawn from."""
    mean_square, n = 0.0, len(images)
    total: Tensor | None = None
    for part in torch.arange(n).split(250):
        gradient, noise = exact_noise_scale(model, _loss, (images[part], labels[part]))
        count = len(part)
        # Undo the correction for a sample: the mean of squares is additive over parts.
        mean_square += (gradient + noise) * count / n
        whole = torch.autograd.grad(
            _loss(model, (images[part], labels[part])), list(model.parameters())
        )
        flat = torch.cat([g.flatten() for g in whole]).double() * count / n
        total = flat if total is None else total + flat
    assert total is not None
    gradient = float(total.square().sum())
    return gradient, mean_square - gradient


def _shuffled(generator: torch.Generator) -> Tensor:
    return torch.randperm(POPULATION, generator=generator)


if __name__ == "__main__":
    main()
