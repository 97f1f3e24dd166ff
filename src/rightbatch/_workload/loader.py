"""Loaders whose workers know the user's code, however the processes are started.

A forked worker has it. A spawned one imports what it is sent by the name of its module, which it
does not find for a file that was imported by its path, nor for functions within others.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from rightbatch._workload.factory import FILES, import_file


def data_loader(data: Any, *, workers: int, collate: Any, **options: Any) -> DataLoader[Any]:
    """Return a loader of a map-style data set; `options` are those of `DataLoader`."""
    if workers and torch.multiprocessing.get_start_method() != "fork":
        data, collate = _Sent(data), _Collate(_Sent(collate))
    return DataLoader(data, num_workers=workers, collate_fn=collate, **options)


class _Sent:
    """An object that is itself again in the process that it is sent to."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __len__(self) -> int:
        return len(self._value)

    def __getitem__(self, index: Any) -> Any:
        return self._value[index]

    def __reduce__(self) -> Any:
        try:
            data = bytes(ForkingPickler.dumps(self._value))  # shares the memory of tensors
        except Exception:  # pickle raises many types for what it cannot send
            import cloudpickle

            data = cloudpickle.dumps(self._value)
        return _received, (dict(FILES), data)


@dataclass(frozen=True)
class _Collate:
    """Sends back what the collate of the other process makes, with classes that only it knows."""

    collate: Any

    def __call__(self, items: list[Any]) -> _Sent:
        return _Sent(self.collate(items))


def _received(files: Mapping[str, Path], data: bytes) -> Any:
    for name, path in files.items():
        if name not in sys.modules and name.encode() in data:
            import_file(path)
    return pickle.loads(data)
