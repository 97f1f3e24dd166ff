"""The right batch size: found, explained and kept.

import rightbatch as rb

rb.fit(factory)     the largest batch that survives on this device
rb.train(spec)      train at a size that was measured, through the framework's own trainer
rb.Workload         what is trained: model, loss, optimizer and data, returned by a factory
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rightbatch._errors import (
    MissingExtraError,
    NothingFitsError,
    RightbatchError,
    UsageError,
    WorkloadError,
)

if TYPE_CHECKING:
    from rightbatch._batch import count_examples, split_batch
    from rightbatch._fit import FitResult, fit
    from rightbatch._probe import Probe
    from rightbatch._train import TrainResult, train
    from rightbatch._workload import Session, Workload

__version__ = "0.1.0"

# Public name -> the module that has it; imported when first used, since most import torch.
_LAZY = {
    "FitResult": "_fit",
    "Probe": "_probe",
    "Session": "_workload",
    "TrainResult": "_train",
    "Workload": "_workload",
    "count_examples": "_batch",
    "fit": "_fit",
    "split_batch": "_batch",
    "train": "_train",
}

__all__ = [
    "FitResult",
    "MissingExtraError",
    "NothingFitsError",
    "Probe",
    "RightbatchError",
    "Session",
    "TrainResult",
    "UsageError",
    "Workload",
    "WorkloadError",
    "count_examples",
    "fit",
    "split_batch",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rightbatch' has no attribute {name!r}")
    value = getattr(import_module(f"rightbatch.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
