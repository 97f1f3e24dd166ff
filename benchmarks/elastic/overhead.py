"""What `Elastic` costs where memory suffices, beside a plain loop of the same parts."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from benchmarks._record import say
from benchmarks.elastic.tasks import SILENT
from benchmarks.workloads import factory

OVERHEAD = {"resnet18": (32, 8), "vit_tiny": (32, 8), "characters": (8, 2)}
"""Batch and micro-batch: seconds a step, as where accumulation is used at all."""
ROUNDS = 30


def overhead() -> dict[str, Any]:
    """Elastic's own processor time, and whole steps beside a plain loop of the same parts.

    Three trainings go on in turns: a plain loop, the same again (A/A), and Elastic. Own time is
    what passes outside of the loss, of `backward` and of `optimizer.step`, less the same of the
    plain loop; and what the optimizer's step in chunks takes longer than the plain one's.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (batch_size, micro) in OVERHEAD.items():
            for fused in (False, True):
                full = f"{name}, fused" if fused else name
                subject = factory(name, Path(folder))
                results[full] = _overhead_of(subject, batch_size, micro, fused)
                say(f"overhead {full}: {results[full]['own_share']:.4f}")
    return results


def _overhead_of(subject: Any, batch_size: int, micro: int, fused: bool) -> dict[str, Any]:
    def made() -> tuple[rb.Workload, Any]:
        torch.manual_seed(0)
        workload = subject.load()()
        for group in workload.optimizer.param_groups:
            group["fused"] = fused
        batch = workload.collate([workload.data[i] for i in range(batch_size)])
        return workload, batch

    plain, again, elastic = made(), made(), made()
    inside = {"model": 0.0, "update": 0.0}

    def timed(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                inside[key] += time.process_time() - started

        return run

    w, batch = elastic
    step = rb.Elastic(
        w.model,
        w.optimizer,
        timed("model", w.loss),
        micro_batch_size=micro,
        count=w.count,
        split=w.split,
        backward=timed("model", lambda loss: loss.backward()),
        update=timed("update", lambda: w.optimizer.step()),
        on_event=SILENT,
    )
    kinds = ("plain", "again", "elastic", "own", "own_plain")
    samples: dict[str, list[float]] = {kind: [] for kind in kinds}
    updates: dict[str, list[float]] = {"plain": [], "elastic": []}
    for number in range(ROUNDS + 3):
        keep = number >= 3
        for key, (workload, its_batch) in (("plain", plain), ("again", again)):
            started = time.process_time()
            inside_plain = _plain_step(workload, its_batch, micro)
            if keep:
                spent = time.process_time() - started
                samples[key].append(spent)
                updates["plain"].append(inside_plain["update"])
                samples["own_plain"].append(spent - sum(inside_plain.values()))
        inside.update(model=0.0, update=0.0)
        started = time.process_time()
        step(batch)
        spent = time.process_time() - started
        if keep:
            samples["elastic"].append(spent)
            samples["own"].append(spent - inside["model"] - inside["update"])
            updates["elastic"].append(inside["update"])
    chunks = statistics.median(updates["elastic"]) - statistics.median(updates["plain"])
    own = statistics.median(samples["own"]) - statistics.median(samples["own_plain"])
    whole = statistics.median(samples["elastic"])
    return {
        "batch_size": batch_size,
        "micro_batch_size": micro,
        "own_share": (own + max(chunks, 0.0)) / whole,
        "own_seconds": own,
        "chunks_seconds": chunks,
        "step_seconds": whole,
        "ratio": interval_of_ratio(samples["elastic"], samples["plain"]),
        "same_again": interval_of_ratio(samples["again"], samples["plain"]),
        "samples": samples,
        "updates": updates,
    }


def _plain_step(w: rb.Workload, batch: Any, micro: int) -> dict[str, float]:
    """The loop that people write; returns the processor seconds of model and optimizer."""
    inside = {"model": 0.0, "update": 0.0}
    w.optimizer.zero_grad()
    parts = w.split(batch, micro)
    counts = [w.count(part) for part in parts]
    total = sum(counts)
    for part, n in zip(parts, counts, strict=True):
        started = time.process_time()
        loss = w.loss(w.model, part)
        inside["model"] += time.process_time() - started
        loss = loss * (n / total)
        started = time.process_time()
        loss.backward()
        inside["model"] += time.process_time() - started
    started = time.process_time()
    w.optimizer.step()
    inside["update"] = time.process_time() - started
    return inside


def interval_of_ratio(one: list[float], other: list[float]) -> dict[str, float]:
    """Median of the paired ratios, with a 95% bootstrap interval."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[-51]}
