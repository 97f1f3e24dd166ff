"""What sending gradients during the last part's backward pass gains over sending them after it."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

import rightbatch as rb
from benchmarks._record import say
from benchmarks.elastic.overhead import interval_of_ratio
from benchmarks.elastic.tasks import SILENT
from benchmarks.workloads import factory

SUBJECTS = {"resnet18": (8, 4), "characters": (8, 4)}
"""Batch and micro-batch of each of two processes."""
ROUNDS = 40


def overlap() -> dict[str, Any]:
    """Seconds of steps with and without, in turns, and Elastic beside DDP's own reduction."""
    results = {}
    for name, (batch_size, micro) in SUBJECTS.items():
        with tempfile.TemporaryDirectory() as folder:
            arguments = (folder, name, batch_size, micro)
            torch.multiprocessing.spawn(_one, args=arguments, nprocs=2, join=True)
            samples = torch.load(Path(folder) / "samples.pt")
        results[name] = {
            "batch_size": 2 * batch_size,
            "after_over_during": interval_of_ratio(samples["after"], samples["during"]),
            "during_over_ddp": interval_of_ratio(samples["during"], samples["ddp"]),
            "seconds": {kind: statistics.median(values) for kind, values in samples.items()},
            "samples": samples,
        }
        say(f"overlap {name}: {results[name]['after_over_during']}")
    return results


def _one(rank: int, folder: str, name: str, batch_size: int, micro: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    load = factory(name, Path(folder)).load()

    def made() -> tuple[rb.Workload, Any, Any]:
        torch.manual_seed(0)
        w = load()
        parallel = nn.parallel.DistributedDataParallel(w.model)
        chosen = range(rank * batch_size, (rank + 1) * batch_size)
        return w, parallel, w.collate([w.data[index] for index in chosen])

    w, parallel, batch = made()
    step = rb.Elastic(
        parallel,
        w.optimizer,
        w.loss,
        micro_batch_size=micro,
        count=w.count,
        split=w.split,
        rollback=False,
        check=False,
        on_event=SILENT,
    )
    plain, ddp, its_batch = made()

    def by_ddp() -> None:
        plain.optimizer.zero_grad()
        parts = list(plain.split(its_batch, micro))
        for number, part in enumerate(parts, start=1):
            ddp.require_backward_grad_sync = number == len(parts)
            (plain.loss(ddp, part) / len(parts)).backward()
        plain.optimizer.step()

    samples: dict[str, list[float]] = {"during": [], "after": [], "ddp": []}
    for number in range(ROUNDS + 3):
        for kind, values in samples.items():
            dist.barrier()
            started = time.perf_counter()
            if kind == "ddp":
                by_ddp()
            else:
                step._ranks.overlaps = kind == "during"  # type: ignore[attr-defined]
                step(batch)
            if number >= 3:
                values.append(time.perf_counter() - started)
    if rank == 0:
        torch.save(samples, Path(folder) / "samples.pt")
    dist.barrier()
    dist.destroy_process_group()
