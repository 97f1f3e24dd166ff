"""The order of an epoch's examples, cut into batches whose size may change within it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rightbatch._training.distributed import Processes
from rightbatch._workload.batch import Batch
from rightbatch._workload.loader import data_loader
from rightbatch._workload.normalization import has_batch_norm
from rightbatch._workload.workload import Workload


def order_of(examples: int, seed: int, epoch: int) -> list[int]:
    """Return the shuffled indices of an epoch, determined by the seed and the epoch."""
    return torch.randperm(examples, generator=_generator(seed, epoch)).tolist()


def epoch_order(workload: Workload, seed: int, epoch: int) -> Sequence[int]:
    """Return the indices of an epoch in the workload's own order, or shuffled."""
    if workload.order is not None:
        return workload.order(seed, epoch)
    return order_of(len(workload.data), seed, epoch)  # type: ignore[arg-type]


def cuts(
    workload: Workload, examples: int, batch_size: int, start: int = 0
) -> list[tuple[int, int]]:
    """Return (start, stop) of each batch in the order from `start` on.

    BatchNorm cannot train on a single example: if one is left over, the last two batches are
    redistributed.
    """
    stops = range(start, examples, batch_size)
    found = [(begin, min(begin + batch_size, examples)) for begin in stops]
    if workload.drop_last and examples >= batch_size:
        return [(begin, stop) for begin, stop in found if stop - begin == batch_size]
    if len(found) > 1 and found[-1][1] - found[-1][0] == 1 and has_batch_norm(workload.model):
        begin = found[-2][0]
        middle = begin + (examples - begin + 1) // 2
        found[-2:] = (
            [(begin, middle), (middle, examples)] if batch_size > 2 else [(begin, examples)]
        )
    return found


def batches(
    workload: Workload,
    order: Sequence[int],
    where: Sequence[tuple[int, int]],
    processes: Processes,
    seed: int,
    epoch: int,
) -> Iterator[tuple[Batch, int]]:
    """Yield this process' share of every batch, with the number of examples of the whole batch."""
    chosen = [list(order[start:stop]) for start, stop in where]
    loader = data_loader(
        workload.data,
        workers=workload.workers,
        collate=_Collate(workload.collate),
        batch_sampler=[processes.share_of(batch) for batch in chosen],
        generator=_generator(seed, epoch, processes.rank),  # seeds the workers
    )
    for batch, (start, stop) in zip(loader, where, strict=True):
        yield batch, stop - start


def _generator(seed: int, epoch: int, rank: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + (rank << 40))


@dataclass(frozen=True)
class _Collate:
    """Returns None if this process has no example in the last, small batch."""

    collate: Callable[[list[Any]], Batch]

    def __call__(self, items: list[Any]) -> Batch:
        return self.collate(items) if items else None
