"""What a run of a study asks of a Ray cluster: processors, a GPU or a share of one, memory."""

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

LEAST_SHARE = 0.25
"""Of a GPU: more runs at once would mostly wait for each other, however small they are."""
SHARES = 20
"""A share is a multiple of a twentieth."""
BESIDE_TENSORS = 2**30
"""Python, torch and the data, on a CPU: an assumption."""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster, as Ray counts it; `memory` in bytes."""

    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Need:
    """`options` are those of a Ray task; `memory` is what the run may use of a GPU that it shares,
    in bytes."""

    options: dict[str, float]
    memory: int | None = None


class Needs:
    """What each run asks for, by what `predict` says of its memory.

    With GPUs in the cluster, unless the runs are to be on the CPU, one for each process of a run,
    or a share of one that several such runs fit into; without, the host's memory. Where nothing is
    known of a step, a whole GPU and no memory. `gpu_bytes` are the memory of the smallest GPU, if
    that is known. Safe to use from several threads.
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
        """The most runs that can go on at a time."""
        cpus = sum(int(node.cpus) for node in self._nodes)
        gpus = sum(node.gpus for node in self._nodes)
        return max(1, min(cpus, int(gpus / LEAST_SHARE)) if self._is_gpu else cpus)

    def of(self, plan: RunPlan) -> Need:
        """May take seconds for the first run.

        Raises:
            UsageError: if no machine of the cluster has as many GPUs or processors.
        """
        cpus = plan.options.processes
        gpus = cpus if self._is_gpu else 0
        able = [node for node in self._nodes if node.cpus >= cpus and node.gpus >= gpus]
        if not able:
            raise UsageError(
                f"a run asks for {cpus} processors{f' and {gpus} GPUs' if gpus else ''} of one "
                f"machine, and none of the cluster's has them; lower --processes ({cpus})"
            )
        options = {"num_cpus": float(cpus)}
        if not self._is_gpu:
            if (memory := self._memory(plan)) is not None:
                # a run that needs more than there is is to be tried, not to wait for ever
                options["memory"] = min(memory, max(node.memory for node in able))
            return Need(options)
        share = float(gpus)
        if gpus == 1 and self._gpu_bytes:
            share = share_of(plan.options.memory_bytes or self._memory(plan), self._gpu_bytes)
        mine = int(share * self._gpu_bytes) if share < 1 and self._gpu_bytes else None
        return Need(options | {"num_gpus": share}, mine if plan.options.memory is None else None)

    def close(self) -> None:
        """End the process that steps are followed in; whoever waits for an answer goes without."""
        self._is_closed = True
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _memory(self, plan: RunPlan) -> int | None:
        """Bytes that a process of the run needs, tensors and all else."""
        wanted = plan.options.micro_batch_size
        if wanted != "auto":
            micro_batch = wanted
        else:
            micro_batch = math.ceil(plan.key.batch_size / plan.options.processes)
        with self._lock:
            if micro_batch not in self._bytes:
                try:
                    self._bytes[micro_batch] = self._predicted(micro_batch)
                except Exception:  # not every workload's step can be followed
                    self._bytes[micro_batch] = None
            return self._bytes[micro_batch]

    def _predicted(self, batch_size: int) -> int | None:
        """As `predict` has it, from one process for all sizes."""
        if self._step is None:
            self._process = FollowProcess(self._header)
            self._step = FollowedStep(self._process)
        if self._is_closed:
            self.close()
            return None
        trace = self._step.at(batch_size, DEFAULT_CAPABILITY)
        if not self._is_gpu:
            return trace.peak_bytes + BESIDE_TENSORS
        simulated = self._step.simulated(batch_size, DEFAULT_CAPABILITY)
        assert simulated is not None  # without a limit there is room
        beside = self._step.overhead(trace, DEFAULT_CAPABILITY)
        return simulated.reserved_bytes + beside.high


def wants_gpus(header: Header, nodes: Sequence[Node]) -> bool:
    """Whether runs go to the cluster's GPUs."""
    return header.device != "cpu" and any(node.gpus for node in nodes)


def share_of(needed: int | None, gpu_bytes: int) -> float:
    """Of a GPU; all of it where another such run would not fit beside.

    >>> share_of(10 * 2**30, 80 * 2**30), share_of(27 * 2**30, 80 * 2**30), share_of(None, 2**30)
    (0.25, 0.35, 1.0)
    """
    if needed is None or needed > gpu_bytes / 2:
        return 1.0
    return max(LEAST_SHARE, math.ceil(SHARES * needed / gpu_bytes) / SHARES)


def nodes_of(ray: Any) -> list[Node]:
    """The machines that are there."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)) for has in alive]
