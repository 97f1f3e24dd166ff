"""The validation loaders of a LightningModule, as the evaluation data of a `Workload`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import Dataset, Subset

from rightbatch._errors import UsageError
from rightbatch.integrations._loaders import LoaderData, loader_data
from rightbatch.integrations.lightning._settings import limited_batches

_LIMIT = "limit_val_batches"


@dataclass(frozen=True)
class Validation:
    """The examples of the first loader, a collate function for both, and the other loaders."""

    data: Any
    collate: Callable[[list[Any]], Any]
    others: Sequence[Any] = ()


def validation_data(
    validation: Any, training: LoaderData, limit: float | None = None
) -> Validation:
    """Return what evaluates; `validation` is a loader, a list of them, or None.

    `limit` is the trainer's `limit_val_batches`, of the batches of each loader.

    Raises:
        UsageError: for a stream as the first loader, a share of the batches of a later stream,
            several loaders in one, or what is no DataLoader.
    """
    if validation is None:
        return Validation(None, training.collate)
    if not isinstance(validation, list | tuple):
        validation = [validation]
    for each in validation:
        if isinstance(each, Mapping | list | tuple) or type(each).__name__ == "CombinedLoader":
            raise UsageError(
                f"the validation has several loaders in one {type(each).__name__}; pass them as a "
                "list, for a validation_step with dataloader_idx"
            )
    first = loader_data(validation[0])
    examples = first.fixed()
    batches = limited_batches(_LIMIT, limit, first.batches(len(examples)))
    if batches * first.batch_size < len(examples):
        examples = Subset(examples, range(batches * first.batch_size))
    others = [_limited(each, limit, index) for index, each in enumerate(validation[1:], start=1)]
    if _is_same(first.collate, training.collate):
        return Validation(examples, training.collate, others)
    collate = _Collate(training.collate, first.collate)
    return Validation(_Marked(examples), collate, others)


def _limited(loader: Any, limit: float | None, index: int) -> Any:
    """Return the first batches of the loader with this dataloader_idx.

    Raises:
        UsageError: for a share of a loader without a length, or if it is less than one batch.
    """
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return loader
    if isinstance(limit, float):
        try:
            batches = len(loader)
        except (TypeError, NotImplementedError) as error:
            data = type(getattr(loader, "dataset", loader)).__name__
            raise UsageError(
                f"{_LIMIT}={limit} is a share of the batches, and the validation loader with "
                f"dataloader_idx {index} has no length, since its data {data} is a stream: give "
                f"a number of batches ({_LIMIT}=10), a data set with __len__, or leave the limit "
                "out and end the data set where the validation ends"
            ) from error
        if not batches:  # Lightning skips it, too
            return loader
        limit = limited_batches(_LIMIT, limit, batches)
    return _FirstBatches(loader, int(limit))


@dataclass(frozen=True)
class _FirstBatches:
    loader: Any
    batches: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.batches)


def _is_same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


class _Marked(Dataset[Any]):
    """Validation examples that are known as such, for a collate function of their own."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> _Mark:
        return _Mark(self._data[index])


@dataclass(frozen=True)
class _Mark:
    item: Any


@dataclass(frozen=True)
class _Collate:
    training: Callable[[list[Any]], Any]
    validation: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        if items and isinstance(items[0], _Mark):
            return self.validation([mark.item for mark in items])
        return self.training(items)
