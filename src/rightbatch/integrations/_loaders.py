"""The data, the order and the collate function of a framework's `DataLoader`, for a `Workload`.

The loader's batch size is not used, everything else of it is: a sampler of one's own decides which
examples an epoch has, and in which order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rightbatch._device.random_state import random_state, seed_all, set_random_state
from rightbatch._errors import UsageError

COMMAND = (
    "or measure the script as a command: `rightbatch fit -- python train.py --batch-size {batch}`"
)
_WRAPPERS = ("BatchSamplerShard", "SkipBatchSampler")
"""Batch samplers of Accelerate, around another one."""
_STATELESS = (RandomSampler, SequentialSampler, WeightedRandomSampler, SubsetRandomSampler)


@dataclass(frozen=True)
class LoaderData:
    """The data set of a loader, and the order of its sampler (None: all examples, shuffled).

    `batch_size` is the loader's own; a `Workload` has another one.
    """

    data: Any
    order: SamplerOrder | None
    collate: Any
    workers: int
    drop_last: bool
    batch_size: int

    def fields(self) -> dict[str, Any]:
        """Return the fields of a `Workload`."""
        return {
            "data": self.data,
            "order": self.order,
            "collate": self.collate,
            "workers": self.workers,
            "drop_last": self.drop_last,
        }

    def batches(self, examples: int) -> int:
        """Return the number of the loader's own batches of so many examples.

        Raises:
            UsageError: if the loader drops its only batch.
        """
        if not self.drop_last:
            return -(-examples // self.batch_size)
        if examples < self.batch_size:
            raise UsageError(
                f"the loader has drop_last=True and {examples} examples, less than one batch of "
                f"{self.batch_size}: leave drop_last out, or make its batches smaller"
            )
        return examples // self.batch_size

    def fixed(self) -> Any:
        """Return the examples as a map-style data set, for an evaluation of the same ones.

        Those of a last batch that the loader drops are left out.

        Raises:
            UsageError: for a stream, which has no length, or if the loader drops its only batch.
        """
        if isinstance(self.data, IterableDataset):
            raise UsageError(
                "the validation data is an IterableDataset, which has no length; give a map-style "
                "data set, or leave the validation out"
            )
        order = range(len(self.data)) if self.order is None else self.order(0, 0)
        kept = order[: self.batches(len(order)) * self.batch_size]
        return self.data if kept == range(len(self.data)) else Subset(self.data, list(kept))


def loader_data(loader: Any) -> LoaderData:
    """Return what a `Workload` needs of a loader.

    Raises:
        UsageError: for what is no DataLoader, and for loaders that make their own batches.
    """
    if not isinstance(loader, DataLoader):
        raise UsageError(
            f"expected a torch.utils.data.DataLoader, got {type(loader).__name__}: give its data "
            f"set in a DataLoader, {COMMAND}"
        )
    data: Any = loader.dataset
    drop_last, batch_size = bool(loader.drop_last), loader.batch_size
    order: SamplerOrder | None = None
    if isinstance(data, IterableDataset):
        if batch_size is None:
            raise UsageError(_own_batches("the data set yields whole batches (batch_size=None)"))
    else:
        if loader.batch_sampler is None:  # batch_size=None
            if isinstance(loader.sampler, BatchSampler):
                raise UsageError(_own_batches("the sampler yields the indices of whole batches"))
            raise UsageError(_own_batches("the data set's items are whole batches"))
        plain = _plain_batches(loader.batch_sampler)
        drop_last, batch_size = bool(plain.drop_last), plain.batch_size
        data, order = _ordered(data, plain.sampler)
    return LoaderData(data, order, loader.collate_fn, loader.num_workers, drop_last, batch_size)


class SamplerOrder:
    """The order of a sampler: `order(seed, epoch)` draws the indices of an epoch.

    The random generators of torch, Python and NumPy, and the sampler's own `generator`, are seeded
    for the epoch, and restored afterwards. A sampler may also have a state of its own: then the
    epochs before are drawn first where they have not been yet, as after a resume, and before an
    earlier epoch its state is restored to what it was at first. The sampler itself draws, so that
    what a module changes in it between epochs has its effect. `data` is not copied.
    """

    def __init__(self, sampler: Any, data: Any = None) -> None:
        self._sampler = sampler
        self._data = data
        self._drawn: tuple[tuple[int, int], Sequence[int]] | None = None
        self._next: tuple[int, int] | None = None
        self._is_stateless = type(sampler) in _STATELESS
        self._initial = None if self._is_stateless else self._copied(sampler)

    def __call__(self, seed: int, epoch: int) -> Sequence[int]:
        """Return the indices of an epoch; the same ones whenever it is asked for.

        Raises:
            UsageError: if the sampler yields something else than indices, or nothing; or if it has
                a state that cannot be restored, and is asked for an earlier epoch.
        """
        if self._drawn is None or self._drawn[0] != (seed, epoch):
            first = epoch if self._is_stateless else self._first(seed, epoch)
            for each in range(first, epoch + 1):
                self._drawn = ((seed, each), self._draw(seed, each))
                self._next = (seed, each + 1)
        assert self._drawn is not None
        return self._drawn[1]

    def _first(self, seed: int, epoch: int) -> int:
        """Return the epoch to draw first; the sampler is then in the state before it."""
        if self._next is None:
            return 0
        if self._next[0] == seed and self._next[1] <= epoch:
            return self._next[1]
        if isinstance(self._initial, Exception):
            raise UsageError(
                f"the state of the loader's sampler {type(self._sampler).__name__} cannot be "
                f"copied ({type(self._initial).__name__}: {self._initial}), so that an epoch that "
                "it has drawn cannot be drawn again; give it a __deepcopy__, or a sampler whose "
                "order depends only on set_epoch and the random generators"
            )
        _restore(self._sampler, self._copied(self._initial))
        return 0

    def _copied(self, sampler: Any) -> Any:
        """Return a copy that shares the data, or the error of copying."""
        shared = {id(each): each for each in (self._data, *_data_in(sampler)) if each is not None}
        try:
            _check_restorable(sampler)
            return copy.deepcopy(sampler, shared)
        except Exception as error:
            return error

    def _draw(self, seed: int, epoch: int) -> Sequence[int]:
        value = seed * 1_000_003 + epoch
        if callable(set_epoch := getattr(self._sampler, "set_epoch", None)):
            set_epoch(epoch)
        own = getattr(self._sampler, "generator", None)
        device = _random_device()
        before = random_state(device)
        try:
            seed_all(value)
            if isinstance(own, torch.Generator):
                own.manual_seed(value)
            drawn = list(self._sampler)
        finally:
            set_random_state(before, device)
        name = type(self._sampler).__name__
        if not drawn:
            raise UsageError(f"the loader's sampler {name} drew no example")
        if not all(isinstance(index, int) or hasattr(index, "__index__") for index in drawn):
            raise UsageError(_own_batches(f"the sampler {name} yields {type(drawn[0]).__name__}s"))
        return [int(index) for index in drawn]


def _check_restorable(sampler: Any) -> None:
    """Raise a TypeError for a state outside of the attributes that `_restore` sets."""
    if any(getattr(kind, "__slots__", ()) for kind in type(sampler).__mro__):
        raise TypeError("its class has __slots__")
    if not hasattr(sampler, "__dict__") and hasattr(sampler, "__next__"):
        raise TypeError("it is an iterator, which yields its indices once")


def _restore(sampler: Any, state: Any) -> None:
    """Give a sampler, and the samplers in it, the attributes of its copy `state`."""
    own = getattr(sampler, "__dict__", {})  # a list has none
    before = dict(own)
    own.clear()
    for name, value in getattr(state, "__dict__", {}).items():
        kept = before.get(name)
        if isinstance(value, Sampler) and type(kept) is type(value):
            _restore(kept, value)
            value = kept
        own[name] = value


def _data_in(sampler: Any) -> list[Any]:
    """Return the data sets that a sampler, and the samplers in it, hold."""
    found: list[Any] = []
    for name, value in getattr(sampler, "__dict__", {}).items():
        if isinstance(value, Dataset) or name in ("data_source", "dataset"):
            found.append(value)
        elif isinstance(value, Sampler):
            found += _data_in(value)
    return found


def _random_device() -> torch.device:
    """Return the device whose random state `seed_all` changes besides the CPU's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _plain_batches(batch_sampler: Any) -> Any:
    """Return the plain batch sampler that Accelerate's have inside, or that it is.

    Raises:
        UsageError: for any other batch sampler, which decides on the sizes itself.
    """
    inner = getattr(batch_sampler, "batch_sampler", None)
    if type(batch_sampler).__name__ in _WRAPPERS and inner is not None:
        return _plain_batches(inner)
    if type(batch_sampler) is BatchSampler:
        return batch_sampler
    name = type(batch_sampler).__name__
    raise UsageError(_own_batches(f"the loader's batch_sampler {name} makes the batches itself"))


def _own_batches(what: str) -> str:
    return (
        f"{what}, so that no other batch size can be tried: give the loader single examples, with "
        f"sampler= for their order, {COMMAND}"
    )


def _ordered(data: Any, sampler: Sampler[int]) -> tuple[Any, SamplerOrder | None]:
    """Return the data set and the order of a sampler over it."""
    if type(sampler) is SubsetRandomSampler:  # shuffled, as is the default
        return Subset(data, [int(index) for index in sampler.indices]), None
    if isinstance(sampler, DistributedSampler):
        # `torchrun -m rightbatch` deals the examples to the processes itself.
        if type(sampler) is DistributedSampler:
            return data, None if sampler.shuffle else SamplerOrder(SequentialSampler(data))
        if sampler.num_replicas > 1:
            raise UsageError(
                f"the loader's sampler {type(sampler).__name__} has the share of one of "
                f"{sampler.num_replicas} processes; give one for num_replicas=1, since `torchrun "
                "-m rightbatch` deals the examples to the processes itself"
            )
    inner = getattr(sampler, "data_source", None)
    is_all = isinstance(sampler, RandomSampler) and (
        not sampler.replacement and sampler.num_samples == len(data)
    )
    # Accelerate's SeedableRandomSampler only seeds a RandomSampler.
    is_known = type(sampler) is RandomSampler or type(sampler).__name__ == "SeedableRandomSampler"
    if is_all and is_known and (inner is None or len(inner) == len(data)):
        return data, None
    return data, SamplerOrder(sampler, data)
