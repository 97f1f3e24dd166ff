"""The resources of a study's runs on a Ray cluster: CPUs, a GPU or a share of one, memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.followed_step import FollowedStep
from rightbatch._predict.predict import DEFAULT_CAPABILITY
from rightbatch._study.runs.plan import RunPlan
from rightbatch._worker.wire import Header

MIN_SHARE = 0.25
"""Smallest share of a GPU: more than four runs on a GPU mostly wait for each other."""
SHARES_PER_GPU = 20
"""Shares are multiples of 1/20."""
CPU_OVERHEAD = 2**30
"""Bytes of Python, torch and the data on a CPU (assumption)."""


@dataclass(frozen=True)
class Node:
    """The resources of one machine as reported by Ray; `memory` in bytes."""

    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Need:
    """The options of a Ray task, and the run's memory limit in bytes on a shared GPU."""

    options: dict[str, float]
    memory: int | None = None


class Needs:
    """Computes the resources of each run from the memory that `predict` estimates.

    On GPUs a run gets one GPU per process, or a share of one if several such runs fit. On CPUs it
    gets host memory. If the step's memory cannot be predicted, it gets a whole GPU, or no memory
    reservation. `gpu_bytes` is the memory of the smallest GPU, if it is known. Thread-safe.
    """

    def __init__(self, header: Header, nodes: Sequence[Node], gpu_bytes: int | None = None) -> None:
        self._header = replace(header, device="cpu", margin=0.0)
        self._nodes, self._gpu_bytes = nodes, gpu_bytes
        self._is_gpu = wants_gpus(header, nodes)
        self._lock = threading.Lock()
        self._process: FollowProcess | None = None
        self._step: FollowedStep | None = None
        self._bytes: dict[int, int | None] = {}
        self._is_closed = False

    @property
    def at_once(self) -> int:
        """The most runs that can run concurrently."""
        cpus = sum(int(node.cpus) for node in self._nodes)
        gpus = sum(node.gpus for node in self._nodes)
        return max(1, min(cpus, int(gpus / MIN_SHARE)) if self._is_gpu else cpus)

    def of(self, plan: RunPlan) -> Need:
        """Return the resources of a run; takes seconds for the first one.

        Raises:
            UsageError: if no machine of the cluster has as many GPUs or processors.
        """
        cpus = plan.options.processes
        gpus = cpus if self._is_gpu else 0
        able = [node for node in self._nodes if node.cpus >= cpus and node.gpus >= gpus]
        if not able:
            raise UsageError(
                f"a run needs {cpus} CPUs{f' and {gpus} GPUs' if gpus else ''} on one machine, and "
                f"no machine of the cluster has them; lower --processes ({cpus})"
            )
        options = {"num_cpus": float(cpus)}
        if not self._is_gpu:
            if (memory := self._memory(plan)) is not None:
                # Ray would never start a run that needs more than any machine has; try it instead.
                options["memory"] = min(memory, max(node.memory for node in able))
            return Need(options)
        share = float(gpus)
        if gpus == 1 and self._gpu_bytes:
            share = share_of(plan.options.memory_bytes or self._memory(plan), self._gpu_bytes)
        mine = int(share * self._gpu_bytes) if share < 1 and self._gpu_bytes else None
        return Need(options | {"num_gpus": share}, mine if plan.options.memory is None else None)

    def close(self) -> None:
        """Stop the prediction process; pending predictions return None."""
        self._is_closed = True
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _memory(self, plan: RunPlan) -> int | None:
        """Return the bytes that a process of the run needs, if they can be predicted."""
        wanted = plan.options.micro_batch_size
        if wanted != "auto":
            micro_batch = wanted
        else:
            micro_batch = math.ceil(plan.key.batch_size / plan.options.processes)
        with self._lock:
            if micro_batch not in self._bytes:
                try:
                    self._bytes[micro_batch] = self._predict(micro_batch)
                except Exception:  # some workloads cannot run on fake tensors
                    self._bytes[micro_batch] = None
            return self._bytes[micro_batch]

    def _predict(self, batch_size: int) -> int | None:
        """Predict the memory as `predict` does, in one process for all sizes."""
        if self._step is None:
            self._process = FollowProcess(self._header)
            self._step = FollowedStep(self._process)
        if self._is_closed:
            self.close()
            return None
        trace = self._step.at(batch_size, DEFAULT_CAPABILITY)
        if not self._is_gpu:
            return trace.peak_bytes + CPU_OVERHEAD
        simulated = self._step.simulated(batch_size, DEFAULT_CAPABILITY)
        assert simulated is not None  # it fits, since there is no limit
        beside = self._step.overhead(trace, DEFAULT_CAPABILITY)
        return simulated.reserved_bytes + beside.high


def wants_gpus(header: Header, nodes: Sequence[Node]) -> bool:
    """Whether runs use the GPUs of the cluster."""
    return header.device != "cpu" and any(node.gpus for node in nodes)


def share_of(needed: int | None, gpu_bytes: int) -> float:
    """Return the share of a GPU for a run; 1.0 if two such runs do not fit.

    >>> share_of(10 * 2**30, 80 * 2**30), share_of(27 * 2**30, 80 * 2**30), share_of(None, 2**30)
    (0.25, 0.35, 1.0)
    """
    if needed is None or needed > gpu_bytes / 2:
        return 1.0
    return max(MIN_SHARE, math.ceil(SHARES_PER_GPU * needed / gpu_bytes) / SHARES_PER_GPU)


def nodes_of(ray: Any) -> list[Node]:
    """Return the machines of the cluster that are alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)) for has in alive]
