"""Kinds of data, after public reports; each function is a factory of a `Workload`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from rightbatch import Workload


class Items(Dataset):
    """`examples` items that `make(index)` returns."""

    def __init__(self, make, examples=96):
        self.make, self.examples = make, examples

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        if index >= self.examples:
            raise IndexError(index)
        return self.make(index)


def pair(index, width=64):
    """An input whose mean tells its class, and the class."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(width, generator=generator) + index % 2, index % 2


def network(width=64, classes=2):
    return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, classes))


def trained(model, loss, data, **fields):
    fields.setdefault("optimizer", torch.optim.AdamW(model.parameters(), 1e-3))
    return Workload(model=model, loss=loss, data=data, **fields)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def unreadable_items():
    """Unreadable files are None and are filtered by the collate; several in a row, too."""

    def collate(items):
        return default_collate([item for item in items if item is not None])

    def make(index):
        return None if index % 16 in (5, 6, 7) else pair(index)

    return trained(network(), cross_entropy, Items(make), collate=collate)


def skipped_batches():
    """The collate returns None for a batch without readable items."""

    def collate(items):
        kept = [item for item in items if item is not None]
        return default_collate(kept) if kept else None

    def make(index):
        return None if index % 8 == 3 else pair(index)

    return trained(network(), cross_entropy, Items(make), collate=collate)


def pairs_of_examples():
    """The loss takes examples in pairs: odd sizes fail."""

    def loss(model, batch):
        first, second = model(batch[0]).view(len(batch[1]) // 2, 2, -1).unbind(1)
        return nn.functional.cosine_similarity(first, second).mean()

    return trained(network(), loss, Items(pair))


def groups_of_six():
    """The loss takes examples in groups of six."""

    def loss(model, batch):
        assert len(batch[1]) % 6 == 0, "batch must be a multiple of 6"
        return cross_entropy(model, batch)

    return trained(network(), loss, Items(pair))


def at_least_two():
    """BatchNorm trains on two examples or more."""
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))
    return trained(model, cross_entropy, Items(pair))


def rare_large_examples():
    """One example in a thousand is fifty times as large."""

    def make(index):
        return torch.randn(2000 if index == 1234 else 40, 16), index % 2

    def collate(items):
        return pad_sequence([x for x, _ in items], True), torch.tensor([y for _, y in items])

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).mean(1), batch[1])

    return trained(network(16), loss, Items(make, 2000), collate=collate)


def slow_items():
    """Items that take time to load."""

    def make(index):
        time.sleep(0.02)
        return pair(index)

    return trained(network(), cross_entropy, Items(make))


class Stream(IterableDataset):
    def __init__(self, make, examples=None):
        self.make, self.examples = make, examples

    def __iter__(self):
        index = 0
        while self.examples is None or index < self.examples:
            yield self.make(index)
            index += 1


def streams():
    return trained(network(), cross_entropy, Stream(pair, 200))


def endless_streams():
    return trained(network(), cross_entropy, Stream(pair))


def streams_of_batches():
    """A stream whose items are whole batches, as tar readers make them."""

    def make(index):
        return default_collate([pair(16 * index + place) for place in range(16)])

    return trained(network(), cross_entropy, Stream(make, 30), collate=lambda batches: batches[0])


def batches_as_items():
    """A data set whose items are whole batches, of which the collate takes the first."""

    def make(index):
        return default_collate([pair(16 * index + place) for place in range(16)])

    return trained(network(), cross_entropy, Items(make, 30), collate=lambda batches: batches[0])


def loaders_as_data():
    return trained(network(), cross_entropy, DataLoader(Items(pair), 4))


def dictionaries_of_data():
    return trained(network(), cross_entropy, {"train": Items(pair), "test": Items(pair)})


def fewer_examples_than_a_batch():
    return trained(network(), cross_entropy, Items(pair, 3))


def one_example():
    return trained(network(), cross_entropy, Items(pair, 1))


def random_collate():
    """The collate draws: crops of another width each time."""

    def collate(items):
        images, labels = default_collate(items)
        width = int(torch.randint(32, 64, ()))
        return nn.functional.pad(images[:, :width], (0, 64 - width)), labels

    return trained(network(), cross_entropy, Items(pair), collate=collate)


def memory_mapped():
    path = Path(tempfile.mkdtemp()) / "data.npy"
    array = np.lib.format.open_memmap(path, "w+", "float32", (96, 64))
    array[:] = np.random.default_rng(0).normal(size=array.shape)
    array.flush()
    array = np.load(path, mmap_mode="r")
    data = Items(lambda index: (torch.from_numpy(array[index].copy()), index % 2))
    return trained(network(), cross_entropy, data)


def numpy_items():
    """Items of numpy arrays and Python numbers, and a plain list as the data."""
    data = [(np.full(64, index % 2, "float32"), index % 2) for index in range(96)]
    return trained(network(), cross_entropy, data)


def loader_workers():
    return trained(network(), cross_entropy, Items(pair), workers=2)


KINDS = {
    function.__name__: function
    for function in (
        unreadable_items,
        skipped_batches,
        pairs_of_examples,
        groups_of_six,
        at_least_two,
        rare_large_examples,
        slow_items,
        streams,
        endless_streams,
        streams_of_batches,
        batches_as_items,
        loaders_as_data,
        dictionaries_of_data,
        fewer_examples_than_a_batch,
        one_example,
        random_collate,
        memory_mapped,
        numpy_items,
        loader_workers,
    )
}
