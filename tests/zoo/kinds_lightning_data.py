"""Kinds of data for Lightning trainings: samplers, loaders and data modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
from lightning_parts import EXAMPLES, Module, data, loader
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from rightbatch import Workload
from rightbatch.integrations.lightning import workload


def subset_sampler() -> Workload:
    return workload(Module(), loader(shuffle=False, sampler=SubsetRandomSampler(range(24))))


def weighted_sampler() -> Workload:
    weights = [1.0] * 24 + [0.0] * 24
    return workload(Module(), loader(shuffle=False, sampler=WeightedRandomSampler(weights, 30)))


def distributed_sampler() -> Workload:
    sampler = DistributedSampler(data(), num_replicas=1, rank=0)
    return workload(Module(), loader(shuffle=False, sampler=sampler))


class Odd:
    """A sampler of the odd indices."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, EXAMPLES, 2))

    def __len__(self) -> int:
        return EXAMPLES // 2


class EveryThird:
    """A sampler with a state of its own: where it starts depends on how often it was asked."""

    def __init__(self) -> None:
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        self.start += 1
        return iter(range(self.start % 3, EXAMPLES, 3))

    def __len__(self) -> int:
        return EXAMPLES // 3


def own_sampler() -> Workload:
    return workload(Module(), loader(shuffle=False, sampler=EveryThird()))


def sequential() -> Workload:
    return workload(Module(), loader(shuffle=False))


class Buckets(BatchSampler):
    """Batches of neighbours, as a bucket sampler makes them."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(range(start, start + 8)) for start in range(0, EXAMPLES, 8)])


def bucket_batch_sampler() -> Workload:
    sampler = Buckets(SequentialSampler(data()), 8, drop_last=False)
    return workload(Module(), DataLoader(data(), batch_sampler=sampler))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (data()[index] for index in range(EXAMPLES))


def stream() -> Workload:
    return workload(Module(), DataLoader(Stream(), batch_size=8))


def stream_of_batches() -> Workload:
    return workload(Module(), DataLoader(Stream(), batch_size=None))


class DataModule(L.LightningDataModule):
    """Its data exists after `setup`, its batch size is a hyperparameter."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        assert stage == "fit" and self.prepared
        self.training = data()

    def train_dataloader(self) -> Any:
        return DataLoader(self.training, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Subset(self.training, range(10)), batch_size=self.hparams.batch_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]


def data_module() -> Workload:
    return workload(Module(), DataModule())


class OwnLoaders(Module):
    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 4

    def setup(self, stage: str) -> None:
        self.data = data()

    def train_dataloader(self) -> Any:
        return [DataLoader(self.data, batch_size=self.batch_size, shuffle=True)]

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=self.batch_size)


def loaders_of_the_module() -> Workload:
    return workload(OwnLoaders())


def dict_of_loaders() -> Workload:
    loaders: Any = {"one": loader(), "two": loader()}
    return workload(Module(), loaders)


class TwoValidations(Module):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", cross_entropy(self(batch[0]), batch[1]) + 10 * dataloader_idx)


def two_validation_loaders() -> Workload:
    return workload(TwoValidations(), loader(), [loader(shuffle=False), loader(shuffle=False)])


class OtherValidation(Module):
    """Validates on dictionaries, which its training does not take."""

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self(batch["x"]), batch["y"])}


def _as_mapping(items: Sequence[Any]) -> dict[str, Tensor]:
    x, y = default_collate(list(items))
    return {"x": x, "y": y}


def other_validation_collate() -> Workload:
    return workload(OtherValidation(), loader(), loader(shuffle=False, collate_fn=_as_mapping))


class Three(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return data()[index]


def smaller_than_the_batch() -> Workload:
    return workload(Module(), DataLoader(Three(), batch_size=64, shuffle=True))


KINDS: dict[str, Callable[[], Workload]] = {
    factory.__name__: factory
    for factory in (
        subset_sampler,
        weighted_sampler,
        distributed_sampler,
        own_sampler,
        sequential,
        bucket_batch_sampler,
        stream,
        stream_of_batches,
        data_module,
        loaders_of_the_module,
        dict_of_loaders,
        two_validation_loaders,
        other_validation_collate,
        smaller_than_the_batch,
    )
}
