"""Several processes over gloo: common decisions, and equal final weights."""

from __future__ import annotations

import gc
import multiprocessing
import random
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from elastic_tasks import (
    SIZES,
    batch_norm,
    classify,
    convolution,
    mlp,
    relative_difference,
    weights,
)
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from rightbatch._elastic import process_group
from rightbatch._elastic.ranks import bare_model
from rightbatch.testing import inject_out_of_memory

PLACES = ("forward", "backward", "synchronization", "optimizer", "hook")
STEPS = 12

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


Together = Callable[..., list[list[torch.Tensor]]]


class Processes:
    """As many processes as a test needs; they import torch once for all tests of this file."""

    def __init__(self) -> None:
        self._ranks: list[tuple[BaseProcess, Connection]] = []

    def run(
        self, work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any
    ) -> list[list[torch.Tensor]]:
        """What `work(rank, world_size, ...)` returns in each of so many processes."""
        spawn = multiprocessing.get_context("spawn")
        while len(self._ranks) < world_size:
            here, there = spawn.Pipe()
            process = spawn.Process(target=_work, args=(there,), daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))
        waiting = [pipe for _, pipe in self._ranks[:world_size]]
        for rank, pipe in enumerate(waiting):
            pipe.send((rank, work, world_size, folder, arguments))
        while waiting:
            for pipe in wait(waiting):
                waiting.remove(pipe)
                failed = pipe.recv()
                if failed:  # the others wait for it
                    self.end()
                    pytest.fail(failed)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]

    def end(self) -> None:
        for process, pipe in self._ranks:
            process.kill()
            process.join()
            pipe.close()
        self._ranks.clear()


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    processes = Processes()
    yield processes.run
    processes.end()


def _work(pipe: Connection) -> None:
    while True:
        request = pipe.recv()
        try:
            _one(*request)
        except BaseException:
            pipe.send(traceback.format_exc())
        else:
            pipe.send("")


def _one(
    rank: int, work: Callable[..., Any], world_size: int, folder: Path, arguments: Any
) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    with pytest.MonkeyPatch.context() as patch:  # `work` may change modules, the next finds them
        patch.setattr(process_group, "BUCKET_BYTES", process_group.BUCKET_BYTES)
        patch.setattr(torch, "empty", torch.empty)
        torch.save(work(rank, world_size, *arguments), folder / f"{rank}.pt")
    dist.barrier()
    gc.collect()  # else the group may end with the interpreter, amid gloo's threads
    dist.destroy_process_group()


def share_of(batch: Any, rank: int, world_size: int) -> Any:
    """Return unequal shares; the first process has the largest."""
    inputs, labels = batch
    cuts = [
        len(labels) * (i + 1) * i // (world_size * (world_size + 1)) for i in range(world_size + 1)
    ]
    cuts[-1] = len(labels)
    return inputs[cuts[rank] : cuts[rank + 1]], labels[cuts[rank] : cuts[rank + 1]]


def train(rank: int, world_size: int, seed: int, faults: bool, task: str = "convolution") -> Any:
    model, loss, batches = {"convolution": convolution, "batch_norm": batch_norm}[task]()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    step = rb.Elastic(parallel, optimizer, loss, micro_batch_size=4, clip_norm=1.0, check=False)
    chance = random.Random(f"{seed} {rank}")
    for number in range(STEPS):
        share = share_of(batches[number % len(SIZES)], rank, world_size)
        if faults and chance.random() < 0.6 / world_size / 2:
            with inject_out_of_memory(chance.choice(PLACES), when=chance.randint(0, 1)):
                step(share)
        else:
            step(share)
    return [
        *weights(model),
        torch.tensor([step.micro_batch_size, step.counts.get("out_of_memory", 0)]),
    ]


def alone() -> list[torch.Tensor]:
    model, loss, batches = convolution()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for number in range(STEPS):
        optimizer.zero_grad()
        loss(model, batches[number % len(SIZES)]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_with_unequal_shares_train_as_one_process_on_the_whole(
    together: Together, tmp_path: Path, world_size: int
) -> None:
    ends = together(train, world_size, tmp_path, 0, False)
    for end in ends:
        assert relative_difference(end[:-1], alone()) <= 1e-10


@pytest.mark.parametrize(("world_size", "seed"), [(2, 1), (4, 2)])
def test_failures_in_any_process_are_survived_by_all_of_them(
    together: Together, tmp_path: Path, world_size: int, seed: int
) -> None:
    ends = together(train, world_size, tmp_path, seed, True)
    for end in ends:
        assert all(torch.equal(a, b) for a, b in zip(end[:-1], ends[0][:-1], strict=True))
        assert end[-1][0] == ends[0][-1][0]
        assert relative_difference(end[:-1], alone()) <= 1e-10
    assert any(end[-1][1] > 0 for end in ends)


class Shared(nn.Module):
    """One layer in three reentrant checkpoints, whose gradient is computed three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.head = nn.Linear(12, 12), nn.Linear(12, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        for _ in range(3):
            x = checkpoint(lambda x: torch.tanh(self.shared(x)), x, use_reentrant=True)
        return self.head(x)  # type: ignore[no-any-return]


def train_shared(rank: int, world_size: int, bucket_bytes: int) -> Any:
    process_group.BUCKET_BYTES = bucket_bytes
    model, (_, _, batches) = Shared().double(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    group = dist.group.WORLD if world_size > 1 else None
    step = rb.Elastic(model, optimizer, classify, micro_batch_size=4, group=group, check=False)
    for batch in batches[:4]:
        step(share_of(batch, rank, world_size) if world_size > 1 else batch)
    assert all(parameter.grad is None for parameter in model.unused.parameters())
    return weights(model)


@pytest.mark.parametrize("bucket_bytes", [1, 2**20])
def test_a_gradient_that_changes_after_it_was_sent_is_sent_again(
    together: Together, tmp_path: Path, bucket_bytes: int
) -> None:
    ends = together(train_shared, 2, tmp_path, bucket_bytes)
    expected = train_shared(0, 1, bucket_bytes)
    for end in ends:
        assert relative_difference(end, expected) <= 1e-10


def train_in_small_buckets(rank: int, world_size: int, seed: int) -> Any:
    process_group.BUCKET_BYTES = 256
    return train(rank, world_size, seed, True)


def test_failures_amid_buckets_on_their_way_are_survived(
    together: Together, tmp_path: Path
) -> None:
    ends = together(train_in_small_buckets, 2, tmp_path, 11)
    for end in ends:
        assert all(torch.equal(a, b) for a, b in zip(end[:-1], ends[0][:-1], strict=True))
        assert relative_difference(end[:-1], alone()) <= 1e-10
    assert any(end[-1][1] > 0 for end in ends)


def train_without_room(rank: int, world_size: int) -> Any:
    model, loss, batches = convolution()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    step = rb.Elastic(parallel, optimizer, loss, micro_batch_size=4, clip_norm=1.0, check=False)
    empty, left = torch.empty, [1]

    def failing(*size: Any, **options: Any) -> torch.Tensor:
        if rank == 1 and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("no room")
        return empty(*size, **options)

    process_group.torch.empty = failing
    for number in range(STEPS):
        step(share_of(batches[number % len(SIZES)], rank, world_size))
    return [*weights(model), torch.tensor([step.counts.get("out_of_memory", 0)])]


def test_where_one_process_has_no_room_for_buckets_all_of_them_try_again(
    together: Together, tmp_path: Path
) -> None:
    for end in together(train_without_room, 2, tmp_path):
        assert relative_difference(end[:-1], alone()) <= 1e-10
        assert end[-1] == 1


def test_buffers_are_those_of_the_first_process(together: Together, tmp_path: Path) -> None:
    one, other = together(train, 2, tmp_path, 3, True, "batch_norm")
    assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


def train_partly(rank: int, world_size: int) -> Any:
    """Each process uses its own layer, and no process uses the last one."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 1) for _ in range(world_size + 1)])
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    step = rb.Elastic(
        parallel, optimizer, lambda m, batch: m[rank](batch).mean(), micro_batch_size=2, check=False
    )
    before = weights(model)
    step(torch.ones(4, 3))
    return [*before, *weights(model)]


def test_what_another_process_uses_is_updated_and_what_none_uses_is_left(
    together: Together, tmp_path: Path
) -> None:
    ends = together(train_partly, 2, tmp_path)
    for tensors in ends:
        before, after = tensors[:6], tensors[6:]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [True] * 4 + [False] * 2
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def refused(rank: int, world_size: int) -> Any:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    )
    try:
        rb.Elastic(
            model, torch.optim.SGD(model.parameters(), 0.1), classify, group=dist.group.WORLD
        )
    except rb.UsageError as error:
        return [torch.tensor("SyncBatchNorm" in str(error))]
    return [torch.tensor(False)]


def test_layers_that_communicate_in_the_forward_pass_are_refused(
    together: Together, tmp_path: Path
) -> None:
    assert all(bool(said) for (said,) in together(refused, 2, tmp_path))


def test_fsdp_raises_an_error_with_the_alternative() -> None:
    class FSDPModule(nn.Linear):
        pass

    with pytest.raises(rb.UsageError, match="DistributedDataParallel, or FSDP with a micro-batch"):
        bare_model(nn.Sequential(FSDPModule(2, 2)))


def test_data_parallel_raises_an_error() -> None:
    model, _, _ = mlp()
    with pytest.raises(rb.UsageError, match="use DistributedDataParallel"):
        bare_model(nn.DataParallel(model))
