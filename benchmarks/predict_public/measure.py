"""Predict the rows of one step, with the engine of `rightbatch predict`, in this process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from benchmarks.predict_public.rows import GPUS, Row
from benchmarks.predict_public.workloads import factory_of, family_of
from rightbatch._predict.build import limit_building
from rightbatch._predict.calibrate import Calibration, calibrated
from rightbatch._predict.follow import Follower
from rightbatch._predict.follow_process import Followed, FollowProcess
from rightbatch._predict.followed_step import FollowedStep
from rightbatch._predict.forked_traces import answers
from rightbatch._predict.gpus import find_gpu
from rightbatch._predict.overhead import CUBLAS, MIB
from rightbatch._predict.variant import Variant
from rightbatch._worker.failure import failure

ALL_KERNELS = Calibration("RTX 3090", 8.6, "1.7", 1486 * MIB, 1486 * MIB, CUBLAS)
"""A process with torch built for CUDA 11.1 and a tensor of 158 MiB took 1,644 MiB of an RTX 3090
(pytorch #49877). Before CUDA 11.7 every kernel was loaded at once, in more than 1,000 MB (pytorch
#107667); the training rows are of torch 1.12 with CUDA 11.3."""


def _outside(row: Row) -> Callable[[float], Calibration | None]:
    """Return what is known of the memory outside the allocator in the row's process."""
    return (lambda _: ALL_KERNELS) if row.kind == "train" else calibrated


class _Following:
    """Answers like a `FollowProcess`, without a process that would import everything again."""

    def __init__(self, row: Row) -> None:
        limit_building()
        # timm's benchmark makes one batch on the GPU, and every step takes it.
        self._follower = Follower(factory_of(row), reuses_batch=row.kind != "peft")
        gc.freeze()

    def follow(self, tasks: Sequence[Mapping[str, Any]]) -> Followed:
        asked = []
        for task in tasks:
            fields = dict(task)
            asked.append((fields.pop("batch_size"), Variant(**fields)))
        found = answers(self._follower, asked, failure)
        follower = self._follower
        return Followed(found, follower.how, follower.notes, follower.examples)


def predictions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what `predict` finds for each row, as raw as it is.

    The step is followed once; each GPU gets its own search, as `rightbatch predict` makes it.
    """
    following = cast(FollowProcess, _Following(rows[0]))
    inference = rows[0].kind == "infer"
    step = FollowedStep(following, inference=inference, calibrated=_outside(rows[0]))
    if rows[0].kind == "peft":
        return [_bytes(step, row) for row in rows]
    found = []
    for one in rows:
        started = time.perf_counter()
        gpu = find_gpu(GPUS[one.gpu])
        largest = step.largest(gpu.usable_bytes, gpu.capability)
        seconds = time.perf_counter() - started
        sizes = {}
        for name in ("ran", "failed"):
            batch = getattr(one, name)
            trace = step.at(batch, gpu.capability)
            simulated = step.simulated(batch, gpu.capability)
            assert simulated is not None
            overhead = step.overhead(trace, gpu.capability)
            sizes[name] = {
                "allocated": simulated.allocated_bytes,
                "reserved": simulated.reserved_bytes,
                "kept": overhead.kept,
            }
        found.append(
            {
                "largest": largest,
                "usable_bytes": gpu.usable_bytes,
                "at": sizes,
                "family": family_of(one),
                "how": step.how,
                "notes": list(step.notes),
                "seconds": seconds,
            }
        )
    return found


def _bytes(step: FollowedStep, row: Row) -> dict[str, Any]:
    """Return what `predict` finds for the batch of a fine-tuning."""
    gpu = find_gpu(GPUS[row.gpu])
    simulated = step.simulated(row.more["batch"], gpu.capability)
    assert simulated is not None
    return {
        "reserved": simulated.reserved_bytes,
        "allocated": simulated.allocated_bytes,
        "how": step.how,
        "notes": list(step.notes),
    }
