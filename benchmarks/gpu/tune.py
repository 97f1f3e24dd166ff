"""Part 5: the batch size that `tune` chooses against 16 and the largest; `NoiseScale`; energy."""

from __future__ import annotations

import statistics
import threading
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb
from benchmarks.gpu import nvidia
from benchmarks.gpu.elastic import interval_of_ratio
from benchmarks.gpu.internals import joules_so_far, synchronize
from benchmarks.gpu.rows import Report

BASE_BATCH, BASE_RATE = 16, 0.05
EXAMPLES, UNSEEN = 16_384, 2048
NOISE = 1.2
"""Standard deviation; that of the patterns is 1."""
TARGET = 0.5
"""Loss on unseen examples. Without learning it is ln 10 = 2.30."""
BUDGET, MOST_SECONDS = 25.0, 18.0
"""Of `tune`, and of each training to the target."""
EVERY = 2048
"""Examples between two evaluations, which are no part of a training's time."""


def run(report: Report) -> None:
    with report.measuring("tune"):
        _choice(report)
    with report.measuring("cost of NoiseScale"):
        _noise(report)
    with report.measuring("energy"):
        _energy(report)


class Patterns(Dataset[Any]):
    """Images of ten patterns, shifted at random and under noise, the same for a seed."""

    def __init__(self, count: int, seed: int, side: int = 16) -> None:
        fixed = torch.Generator().manual_seed(0)
        patterns = torch.randn(10, 1, side, side, generator=fixed)
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 10, (count,), generator=generator)
        shifts = torch.randint(-4, 5, (count, 2), generator=generator).tolist()
        clean = [
            patterns[label].roll(tuple(shift), (1, 2))
            for label, shift in zip(self.labels.tolist(), shifts, strict=True)
        ]
        noise = torch.randn(count, 1, side, side, generator=generator)
        self.images = torch.stack(clean) + NOISE * noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]


def classify(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def task(tiny: bool = False, seed: int = 0) -> rb.Workload:
    """A small CNN by SGD with momentum; its learning rate is for batch size 16."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=BASE_RATE / 5, momentum=0.9)
    examples, unseen = (256, 64) if tiny else (EXAMPLES, UNSEEN)
    data, evaluation = Patterns(examples, 1), Patterns(unseen, 2)
    return rb.Workload(model, classify, optimizer, data, evaluation_data=evaluation)


def _choice(report: Report) -> None:
    plan = rb.tune(
        partial(task, report.tiny),
        budget=3.0 if report.tiny else BUDGET,
        max_batch=32 if report.tiny else None,
        device=report.device,
        progress=False,
    )
    report.row(
        "tune: the batch size",
        f"{plan.batch_size}, learning rate times {plan.learning_rate_factor:.2f}, "
        f"{plan.noise_scale}, in {plan.seconds:.0f} s",
        "",
        plan=plan.to_dict(),
    )
    largest = plan.largest.batch_size
    # A size that nobody tuned a rate for takes the square root, which is safe for SGD.
    factors = {BASE_BATCH: 1.0, largest: (largest / BASE_BATCH) ** 0.5}
    factors[plan.batch_size] = plan.learning_rate_factor
    seconds: dict[int, float | None] = {}
    for size in sorted(factors, key=lambda size: size != plan.batch_size):  # its own first
        what = f"training to a loss of {TARGET} at batch size {size}"
        if report.has_time(what, MOST_SECONDS):
            with report.measuring(what):
                found = to_target(report, size, factors[size])
                seconds[size] = found["seconds"] if found["reached"] else None
                report.row(what, _in_words(found), "", factor=factors[size], **found)
    times = {size: "not reached" if s is None else f"{s:.1f} s" for size, s in seconds.items()}
    chosen = times.pop(plan.batch_size, "not run")
    others = ", ".join(f"{size}: {text}" for size, text in sorted(times.items()))
    report.row("seconds to the target at tune's choice", chosen, f"no more than at {others}")


def to_target(report: Report, size: int, factor: float) -> dict[str, Any]:
    """A plain loop until the loss on unseen examples, over three evaluations, is the target."""
    w = task(report.tiny)
    data: Any = w.data
    unseen: Any = w.evaluation_data
    model, device = w.model.to(report.device), torch.device(report.device)
    for group in w.optimizer.param_groups:
        group["lr"] *= factor
    evaluation = (unseen.images.to(device), unseen.labels.to(device))
    generator = torch.Generator().manual_seed(0)
    losses: list[float] = []
    found: dict[str, Any] = {"steps": 0, "examples": 0, "seconds": 0.0, "reached": False}
    most, due = (0.3 if report.tiny else MOST_SECONDS), EVERY
    while not found["reached"] and found["seconds"] < most:
        for chosen in torch.randperm(len(data), generator=generator).split(size):
            started = time.perf_counter()
            batch = w.collate([data[index] for index in chosen.tolist()])
            w.optimizer.zero_grad()
            classify(model, tuple(tensor.to(device) for tensor in batch)).backward()
            w.optimizer.step()
            found["examples"] += len(chosen)
            found["steps"] += 1
            if found["examples"] >= due:
                synchronize(device)  # before the time is taken
            found["seconds"] += time.perf_counter() - started
            if found["examples"] >= due:
                due = found["examples"] + EVERY
                with torch.no_grad():
                    losses.append(float(classify(model, evaluation)))
                last = losses[-3:]
                found["reached"] = len(last) == 3 and statistics.fmean(last) <= TARGET
            if found["reached"] or found["seconds"] >= most:
                break
    return found | {"losses": losses}


def _in_words(found: dict[str, Any]) -> str:
    how = "reached" if found["reached"] else "not reached"
    return f"{how} in {found['seconds']:.1f} s, {found['steps']} steps"


def _noise(report: Report) -> None:
    """A loop of four micro-batches: plain, the same again (A/A) and watched, in turns."""
    rounds, micro = (5, 8) if report.tiny else (100, 64)
    device = torch.device(report.device)
    tasks = [task(report.tiny) for _ in range(3)]
    data: Any = tasks[0].data
    parts = [
        (data.images[i * micro : (i + 1) * micro].to(device), data.labels[:micro].to(device))
        for i in range(4)
    ]
    for w in tasks:
        w.model.to(device)
    watching = rb.NoiseScale(tasks[2].model)

    def step(w: rb.Workload, noise: rb.NoiseScale | None) -> float:
        synchronize(device)
        started = time.perf_counter()
        w.optimizer.zero_grad()
        for part in parts:
            (classify(w.model, part) / len(parts)).backward()
            if noise is not None:
                noise.micro_batch(n=micro, weight=1 / len(parts))
        if noise is not None:
            noise.step()
        w.optimizer.step()
        synchronize(device)
        return time.perf_counter() - started

    names = ("plain", "again", "watched")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 3):
        for name, w in zip(names, tasks, strict=True):
            taken = step(w, watching if name == "watched" else None)
            if number >= 3:
                seconds[name].append(taken)
    watching.close()
    ratio, same = (interval_of_ratio(seconds[n], seconds["plain"]) for n in ("watched", "again"))
    report.row(
        "a step with NoiseScale, over the plain loop",
        _interval(ratio),
        f"at most 1.03; the plain loop again: {_interval(same)}",
        ratio=ratio,
        same_again=same,
        estimate=str(watching.estimate),
        seconds=seconds,
    )


def _energy(report: Report) -> None:
    """Watts by the counter that `tune --objective energy` reads, against the driver's samples."""
    if report.device == "cuda" and not report.has("energy", "pynvml"):
        return
    device = torch.device(report.device)
    seconds, side = (0.2, 128) if report.tiny else (4.0, 8192)
    x = torch.ones(side, side, device=device)
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.2):
            watts = nvidia.ask().get("watts")
            if watts is not None:
                samples.append(watts)

    thread = threading.Thread(target=sample)
    if report.device == "cuda":
        thread.start()
    before, started = joules_so_far(device), time.perf_counter()
    while time.perf_counter() - started < seconds:
        y = x @ x
        synchronize(device)
    after, took = joules_so_far(device), time.perf_counter() - started
    over.set()
    if report.device == "cuda":
        thread.join()
    del y
    watts = None if before is None or after is None else (after - before) / took
    goal = f"{statistics.fmean(samples):.0f} W, mean of nvidia-smi's samples" if samples else ""
    report.row(
        "energy: a matrix product again and again",
        "nobody counts it here" if watts is None else f"{watts:.0f} W",
        goal,
        watts=watts,
        samples=samples,
    )


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
