"""Part 4: what `Elastic` costs, and trainings that run out of memory again and again."""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from benchmarks.gpu.internals import allocator_retries, open_device, synchronize
from benchmarks.gpu.rows import Report

MICRO, PARTS = 64, 4
INJECTED, REAL, BETWEEN = 50, 10, 25
"""Failures, and the steps from one to the next: after so many, the same size is tried again."""
PLACES = ("forward", "backward", "optimizer")
MIB = 2**20


def silent(event: rb.Event) -> None:
    """Failures are expected here."""


def run(report: Report) -> None:
    logging.getLogger("rightbatch").setLevel(logging.ERROR)
    torch.use_deterministic_algorithms(True)
    with report.measuring("cost of a step"):
        _cost(report)
    with report.measuring("injected failures"):
        _injected(report)
    with report.measuring("real failures"):
        _real(report)
    with report.measuring("early warning"):
        _warning(report)


class Wide(nn.Module):
    """Activations that are large beside the weights, so that memory depends on the micro-batch."""

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


class Task:
    """The same training every time it is made: a model, an optimizer and batches of one size."""

    def __init__(self, device: str, width: int, inner: int, layers: int, size: int) -> None:
        torch.manual_seed(0)
        self.model = Wide(width, inner, layers).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(1)
        self.batches = [
            (
                torch.randn(size, width, generator=generator),
                torch.randint(0, 10, (size,), generator=generator),
            )
            for _ in range(4)
        ]

    def elastic(self, micro: int, **options: Any) -> rb.Elastic:
        options = {"on_event": silent, "check": False} | options
        return rb.Elastic(
            self.model, self.optimizer, cross_entropy, micro_batch_size=micro, **options
        )

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def _cost(report: Report) -> None:
    """A plain loop of the same parts, the same again (A/A), and Elastic, in turns."""
    micro = 8 if report.tiny else MICRO
    shape = (32, 64, 2) if report.tiny else (1024, 4096, 12)
    rounds = 5 if report.tiny else 30
    device = torch.device(report.device)
    tasks = [Task(report.device, *shape, micro * PARTS) for _ in range(3)]
    step = tasks[2].elastic(micro)
    runs: dict[str, Callable[[Any], Any]] = {
        "plain": lambda batch: _plain_step(tasks[0], batch, micro, device),
        "again": lambda batch: _plain_step(tasks[1], batch, micro, device),
        "elastic": step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 3):
        for name, one in runs.items():
            batch = tasks[0].batches[number % 4]
            synchronize(device)
            started = time.perf_counter()
            one(batch)
            synchronize(device)
            if number >= 3:
                seconds[name].append(time.perf_counter() - started)
    ratio, same = (interval_of_ratio(seconds[n], seconds["plain"]) for n in ("elastic", "again"))
    report.row(
        "a step with Elastic, over the plain loop",
        _interval(ratio),
        f"at most 1.03; the plain loop again: {_interval(same)}",
        ratio=ratio,
        same_again=same,
        seconds=seconds,
    )


def _plain_step(task: Task, batch: Any, micro: int, device: torch.device) -> None:
    task.optimizer.zero_grad()
    x, y = batch
    for part in zip(x.split(micro), y.split(micro), strict=True):
        moved = tuple(tensor.to(device) for tensor in part)
        (cross_entropy(task.model, moved) * (len(part[0]) / len(x))).backward()
    task.optimizer.step()


def _injected(report: Report) -> None:
    """Failures so far apart that each is tried again at its size: the weights are the same bits."""
    from rightbatch.testing import inject_out_of_memory

    failures = 3 if report.tiny else INJECTED
    failed = 0

    def trained(disturbed: bool) -> list[Tensor]:
        nonlocal failed
        task = Task(report.device, 32, 64, 2, 32)
        step = task.elastic(8)
        for number in range(failures * BETWEEN):
            place, context = PLACES[number // BETWEEN % len(PLACES)], nullcontext()
            if disturbed and number % BETWEEN == BETWEEN // 2:
                when = 0 if place == "optimizer" else 2
                context = inject_out_of_memory(place, when)  # type: ignore[assignment,arg-type]
            with context as injected:
                step(task.batches[number % 4])
            failed += len(injected.failed) if injected is not None else 0
        return task.weights()

    undisturbed, disturbed = trained(False), trained(True)
    report.row(
        f"{failures} injected failures: weights against an undisturbed training",
        f"{failed} failed, {'equal bit for bit' if equal(disturbed, undisturbed) else 'differ'}, "
        f"difference {difference(disturbed, undisturbed):.1e}",
        f"{failures} failed, equal bit for bit",
        failures=failed,
        difference=difference(disturbed, undisturbed),
    )


def _real(report: Report) -> None:
    """Steps for which the allocator (on the CPU: the system) gives less than their size needs."""
    failures = 2 if report.tiny else REAL
    shape = (32, 16384, 2, 128) if report.tiny else (1024, 8192, 8, 4096)
    size = shape[3]
    needed = _activations(report, shape)
    kinds: dict[str, int] = {}

    def trained(micro: int, starved: bool) -> list[Tensor]:
        task = Task(report.device, *shape)
        step = task.elastic(micro)
        for number in range(2 * failures + 2):
            if starved and number % 2:
                with _starved(report.device, int(0.6 * needed)):
                    events = step(task.batches[number % 4]).events
                for event in events:
                    kinds[event.kind] = kinds.get(event.kind, 0) + 1
                step.use(micro)
            else:
                step(task.batches[number % 4])
        return task.weights()

    whole = trained(size, False)
    starved, halves = trained(size, True), trained(size // 2, False)
    apart, rounding = difference(starved, whole), difference(halves, whole)
    report.row(
        f"{failures} steps without enough memory: weights against an undisturbed training",
        f"{kinds.get('out_of_memory', 0)} out-of-memory errors, difference {apart:.1e}",
        f"at least {failures}; by rounding, half the micro-batch differs by {rounding:.1e}",
        events=kinds,
        difference=apart,
        difference_of_two_sizes=rounding,
        activations_bytes=needed,
    )


def _activations(report: Report, shape: tuple[int, int, int, int]) -> int:
    """Bytes that a forward and backward pass needs beside weights, gradients and their state."""
    task = Task(report.device, *shape)
    step = task.elastic(shape[3])
    for batch in task.batches[:2]:
        step(batch)
    if report.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(task.batches[2])
        return int(torch.cuda.max_memory_allocated() - before)
    device = open_device("cpu")
    device.prepare()
    device.reset_peak()
    step(task.batches[2])
    return device.read().peak_bytes


@contextmanager
def _starved(device: str, more: int) -> Iterator[None]:
    """Inside, this process gets `more` bytes beyond what it holds now; what fails, fails for
    real."""
    if device != "cuda":
        from rightbatch.testing import limited_memory

        with limited_memory(more):
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    share = (torch.cuda.memory_reserved() + more) / total
    torch.cuda.set_per_process_memory_fraction(share, 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def _warning(report: Report) -> None:
    """Batches of different widths, for which the allocator has to give its cache back: `Elastic`
    makes the micro-batch smaller before memory runs out."""
    rows = 64 if report.tiny else 4096
    lengths = [rows, rows + rows // 7, rows + rows // 5, rows + rows // 3]
    task = (
        Task(report.device, 64, 256, 2, 4) if report.tiny else Task(report.device, 512, 4096, 4, 4)
    )
    width = task.batches[0][0].shape[1]
    step = task.elastic(max(lengths))
    batches = [(torch.randn(n, width), torch.zeros(n, dtype=torch.long)) for n in lengths]
    if report.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # what went before was larger
    step(batches[-1])
    device, context = torch.device(report.device), nullcontext()
    if report.device == "cuda":
        # Enough for the largest batch alone, and not for it beside blocks of another size.
        reserved = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        context = _starved("cuda", reserved - torch.cuda.memory_reserved() + 8 * MIB)  # type: ignore[assignment]
    before, events = allocator_retries(device), []
    with context:
        for number in range(12):
            events += [(event.kind, number) for event in step(batches[number % 4]).events]
    kinds = [kind for kind, _ in events]
    report.row(
        "early warning: 12 steps of changing sizes in a tight allocator",
        f"{allocator_retries(device) - before} retries, {kinds.count('shrunk')} times smaller, "
        f"{kinds.count('out_of_memory')} out-of-memory errors, micro-batch {step.micro_batch_size}",
        "on CUDA: retries, smaller, and then no errors",
        events=events,
        lengths=lengths,
    )


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Of all weights, relative to the other's norm."""
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True))
    return float((apart / sum(float(b.double().square().sum()) for b in other)) ** 0.5)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def interval_of_ratio(one: list[float], other: list[float]) -> dict[str, float]:
    """Median of the paired ratios, with a 95% bootstrap interval."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[-51]}


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
