"""Loaders with spawned workers: they know a file that was imported by its path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rightbatch._workload.factory import FileFactory
from rightbatch._workload.loader import data_loader

FILE = """\
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

@dataclass
class Batch:
    image: torch.Tensor

class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.make(index)

def workload():
    return Items(lambda index: torch.full((3,), index)), lambda items: Batch(torch.stack(items))
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "spawned.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop("_rightbatch_spawned", None)


def test_a_spawned_worker_loads_lambdas_and_classes_of_a_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HazyResearch/cartridges#20: what is forked on Linux is pickled on macOS and Windows."""
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda: "spawn")
    data, collate = FileFactory(file, "workload")()
    loader = data_loader(
        data, workers=1, collate=collate, batch_size=2, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert {type(batch) for batch in batches} == {sys.modules["_rightbatch_spawned"].Batch}
    assert [batch.image[:, 0].tolist() for batch in batches] == [[0, 1], [2, 3]]
