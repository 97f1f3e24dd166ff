"""Seconds per step for any batch size, from steps of some micro-batch sizes that were timed.

A step of k micro-batches takes k forward and backward passes and one update. Its examples are
loaded before it in the same process, or by workers in parallel. Medians are used since a shared
machine has outliers; their uncertainty is found by resampling the raw samples.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rightbatch._workload.workload import StepSeconds

DRAWS = 1000
_SAME_SPEED = 0.01
"""Relative difference below which the larger of two micro-batches is used."""


@dataclass(frozen=True)
class Network:
    """Devices that share each batch and all-reduce their gradients.

    `bandwidth` is in bytes per second between neighbours of a ring.
    """

    devices: int = 1
    bandwidth: float = float("inf")
    gradient_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of a ring all-reduce: every device sends 2(N−1)/N of the gradients."""
        share = 2 * (self.devices - 1) / self.devices
        return share * self.gradient_bytes / self.bandwidth


@dataclass(frozen=True)
class Steps:
    """How each device runs a batch; `seconds` are resampled medians of its step, shape (DRAWS,)."""

    batch_size: int
    micro_batch_size: int
    accumulation: int
    seconds: Tensor


class Throughput:
    """Step times of every batch size, from `samples` of some micro-batch sizes.

    `workers` is the number of processes that load examples in parallel; 0: the training process.
    Without `accumulates` each batch is one micro-batch, whose time is interpolated.
    """

    def __init__(
        self,
        samples: Mapping[int, Sequence[StepSeconds]],
        *,
        workers: int = 0,
        network: Network | None = None,
        accumulates: bool = True,
        seed: int = 0,
    ) -> None:
        self.samples = {size: tuple(samples[size]) for size in sorted(samples)}
        self._sizes = list(self.samples)
        self._workers, self._accumulates = workers, accumulates
        self._network = network or Network()
        generator = torch.Generator().manual_seed(seed)
        self._computing: dict[int, Tensor] = {}
        per_example, updating = [], []
        for size, steps in self.samples.items():
            chosen = torch.randint(len(steps), (DRAWS, len(steps)), generator=generator)
            columns = torch.tensor(
                [(s.loading / size, s.computing, s.updating) for s in steps], dtype=torch.float64
            )
            loading, computing, update = columns[chosen].quantile(0.5, dim=1).unbind(dim=1)
            self._computing[size] = computing
            per_example.append(loading)
            updating.append(update)
        self.loading_per_example = torch.stack(per_example).quantile(0.5, dim=0)
        self._updating = torch.stack(updating).quantile(0.5, dim=0)

    def steps(self, batch_size: int) -> Steps:
        """Return the fastest steps of `batch_size`; of equally fast micro-batches, the largest."""
        local = -(-batch_size // self._network.devices)
        if not self._accumulates:
            return Steps(batch_size, local, 1, self._step(local, local))
        tries = [size for size in self._sizes if size <= local] or self._sizes[:1]
        seconds = {size: self._step(local, size) for size in tries}
        fastest = min(float(times.median()) for times in seconds.values())
        micro = max(
            size for size in tries if float(seconds[size].median()) <= (1 + _SAME_SPEED) * fastest
        )
        return Steps(batch_size, min(micro, local), -(-local // micro), seconds[micro])

    def waits_for_loading(self, batch_size: int) -> float:
        """Return seconds of loading per second of computing and updating."""
        steps = self.steps(batch_size)
        local = -(-batch_size // self._network.devices)
        busy = self._busy(local, steps.micro_batch_size).median()
        loading = local * self.loading_per_example.median() / max(self._workers, 1)
        return float(loading / busy)

    def _step(self, local: int, micro: int) -> Tensor:
        busy = self._busy(local, micro)
        if self._network.devices > 1:
            # Between an exchange that overlaps the computation and one that follows it: the
            # two extremes of Pollux' (T_comp^γ + T_net^γ)^(1/γ), Qiao 2021, arXiv 2008.12260.
            net = self._network.seconds
            share = torch.linspace(0, 1, DRAWS, dtype=torch.float64)
            share = share[torch.randperm(DRAWS, generator=torch.Generator().manual_seed(1))]
            hidden = busy.clamp_min(net)
            busy = hidden + share * (busy + net - hidden)
        loading = local * self.loading_per_example
        if self._workers == 0:
            return busy + loading
        return busy.maximum(loading / self._workers)

    def _busy(self, local: int, micro: int) -> Tensor:
        whole, rest = divmod(local, micro)
        computing = whole * self._between(micro)
        if rest:
            computing = computing + self._between(rest)
        return computing + self._updating

    def _between(self, size: int) -> Tensor:
        """Return the seconds of a pass; of a size that was not timed, by linear interpolation."""
        if size in self._computing:
            return self._computing[size]
        place = bisect_left(self._sizes, size)
        if place == 0:
            return self._computing[self._sizes[0]]
        if place == len(self._sizes):
            return self._computing[self._sizes[-1]] * (size / self._sizes[-1])
        low, high = self._sizes[place - 1], self._sizes[place]
        share = (size - low) / (high - low)
        return self._computing[low] + share * (self._computing[high] - self._computing[low])


def spread(samples: Sequence[StepSeconds]) -> float:
    """Return half the 95% interval of the median step, relative to it; infinite below 3 samples.

    Uses order statistics, so no distribution of the noise is assumed.
    """
    times = sorted(s.computing + s.updating for s in samples)
    count = len(times)
    if count < 3:
        return float("inf")
    half = 0.98 * count**0.5
    low, high = max(int(count / 2 - half), 0), min(int(count / 2 + half), count - 1)
    return (times[high] - times[low]) / 2 / times[count // 2]
