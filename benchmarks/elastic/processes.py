"""DDP with 2 and 4 processes, of which random ones run out of memory."""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

import rightbatch as rb
from benchmarks._record import say
from benchmarks.elastic.tasks import OPTIMIZERS, SILENT, made
from rightbatch.testing import inject_out_of_memory

RUNS, RUN_STEPS = 50, 12


def processes() -> dict[str, Any]:
    """DDP with 2 and 4 processes, failures in random ones: 50 trainings each."""
    results = {}
    for world_size in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(
                _one_process, args=(world_size, folder), nprocs=world_size, join=True
            )
            ends = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]
        differing = sum(
            not all(torch.equal(a, b) for a, b in zip(ends[0][run], end[run], strict=True))
            for run in range(RUNS)
            for end in ends[1:]
        )
        survived = sum(int(end[-1]) for end in ends)
        results[str(world_size)] = {
            "runs": RUNS,
            "deadlocks": 0,  # one would have ended the benchmark by the group's timeout
            "failures_injected": survived,
            "differences_between_processes": differing,
        }
        say(f"processes {world_size}: {results[str(world_size)]}")
    return results


def _one_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/meeting",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    ends: list[Any] = []
    injected_in_all = 0
    for run in range(RUNS):
        model, loss, batches = made("convolution", torch.float32)
        parallel = nn.parallel.DistributedDataParallel(model)
        update = OPTIMIZERS["AdamW"](model.parameters())
        step = rb.Elastic(parallel, update, loss, micro_batch_size=4, check=False, on_event=SILENT)
        chance = random.Random(f"{run} {rank}")
        for number in range(RUN_STEPS):
            images, labels = batches[number % len(batches)]
            share = images[rank::world_size], labels[rank::world_size]
            with ExitStack() as stack:
                if chance.random() < 0.3 / world_size:
                    place = chance.choice(
                        ("forward", "backward", "synchronization", "optimizer", "hook")
                    )
                    fault = stack.enter_context(inject_out_of_memory(place, 0))
                    step(share)
                    injected_in_all += len(fault.failed)
                else:
                    step(share)
        ends.append([p.detach().clone() for p in model.parameters()])
    ends.append(torch.tensor(injected_in_all))
    torch.save(ends, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
