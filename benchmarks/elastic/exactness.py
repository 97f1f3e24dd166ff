"""How far apart trainings end that were disturbed, and gradients of parts from the whole."""

from __future__ import annotations

import itertools
import random
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import rightbatch as rb
from benchmarks._record import say
from benchmarks.elastic.tasks import OPTIMIZERS, SILENT, made
from rightbatch.testing import inject_out_of_memory

STEPS, FAILURES, MICRO = 200, 20, 6


def exactness() -> list[dict[str, Any]]:
    """Gradients of parts against the whole; 200 steps with 20 failures against none."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        for task in ("mlp", "convolution", "transformer, ReLU", "transformer, GELU"):
            for optimizer in OPTIMIZERS:
                rows.append(_exactness_of(task, optimizer, dtype))
                say(f"exactness {rows[-1]}")
    return rows


def _exactness_of(task: str, optimizer: str, dtype: torch.dtype) -> dict[str, Any]:
    worst = 0.0
    model, loss, batches = made(task, dtype)
    step = rb.Elastic(
        model,
        OPTIMIZERS[optimizer](model.parameters()),
        loss,
        micro_batch_size=MICRO,
        on_event=SILENT,
    )
    for number in range(20):
        batch = batches[number % len(batches)]
        whole = torch.autograd.grad(loss(model, batch), list(model.parameters()))
        step(batch)
        parts = [p.grad for p in model.parameters() if p.grad is not None]
        worst = max(worst, difference(parts, whole))
    undisturbed = _trained(task, optimizer, dtype, MICRO)
    # What fails twice in a row is halved, so a disturbed training runs at several sizes.
    disturbed, failures, seen_once, sizes = _disturbed(task, optimizer, dtype)
    others = [_trained(task, optimizer, dtype, size) for size in sizes if size != MICRO]
    pairs = itertools.combinations([undisturbed, *others], 2)
    once_more, same_failures = _retried(task, optimizer, dtype)
    return {
        "task": task,
        "optimizer": optimizer,
        "dtype": str(dtype).removeprefix("torch."),
        "gradient": worst,
        "failures": failures,
        "end": difference(disturbed, undisturbed),
        "sizes": sizes,
        "two_sizes": max(difference(one, other) for one, other in pairs),
        "retries_at_the_same_size": same_failures,
        "retried_equal_bit_for_bit": all(map(torch.equal, once_more, undisturbed)),
        "examples_seen_once": seen_once,
    }


def _trained(task: str, optimizer: str, dtype: torch.dtype, micro: int) -> list[Tensor]:
    model, loss, batches = made(task, dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    step = rb.Elastic(model, update, loss, micro_batch_size=micro, on_event=SILENT)
    for number in range(STEPS):
        step(batches[number % len(batches)])
    return [p.detach() for p in model.parameters()]


def _disturbed(
    task: str, optimizer: str, dtype: torch.dtype
) -> tuple[list[Tensor], int, bool, list[int]]:
    model, loss, batches = made(task, dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    step = rb.Elastic(model, update, loss, micro_batch_size=MICRO, on_event=SILENT)
    chance = random.Random(0)
    places = ("forward", "backward", "synchronization", "optimizer", "hook")
    at = sorted(chance.sample(range(STEPS), FAILURES))
    failures, counted = 0, True
    sizes: set[int] = set()
    for number in range(STEPS):
        batch = batches[number % len(batches)]
        size = len(batch[1]) if isinstance(batch, tuple) else len(batch)
        with ExitStack() as stack:
            if number in at:
                fault = inject_out_of_memory(chance.choice(places), 0)
                injected = stack.enter_context(fault)
            report = step(batch)
            counted &= report.count == size
            sizes.add(report.micro_batch_size)
        failures += len(injected.failed) if number in at else 0
    return [p.detach() for p in model.parameters()], failures, counted, sorted(sizes)


def _retried(task: str, optimizer: str, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """Failures so far apart that each is tried again at the same size."""
    model, loss, batches = made(task, dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    step = rb.Elastic(model, update, loss, micro_batch_size=MICRO, on_event=SILENT)
    failures = 0
    for number in range(STEPS):
        with ExitStack() as stack:
            if number % 25 == 12:
                stack.enter_context(inject_out_of_memory("backward", 1))
                failures += 1
            step(batches[number % len(batches)])
    return [p.detach() for p in model.parameters()], failures


def difference(one: Any, other: Any) -> float:
    apart = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)
    )
    return float((apart / sum(float(b.double().square().sum()) for b in other)) ** 0.5)
