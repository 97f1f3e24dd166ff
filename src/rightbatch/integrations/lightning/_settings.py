"""The settings of a Lightning `Trainer` that a `Workload` has fields for; others are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import IterableDataset

from rightbatch._errors import UsageError
from rightbatch._training.epoch import order_of
from rightbatch.integrations._loaders import COMMAND, LoaderData

_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
_UNNEEDED = (
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "LearningRateMonitor",
    "DeviceStatsMonitor",
    "ThroughputMonitor",
    "BatchSizeFinder",
    "ElasticBatches",
)
"""Callbacks, and their subclasses, that change no weight of the training."""


def trainer_fields(trainer: Any, data: LoaderData) -> dict[str, Any]:
    """Return the fields of a `Workload` for a trainer's settings.

    Its epochs, devices and accumulation are not used: the verbs have their own.

    Raises:
        UsageError: for a precision, a clipping or a limit that a `Workload` cannot have.
    """
    precision = str(trainer.precision)
    if precision not in _PRECISIONS:
        raise UsageError(
            f"precision={precision!r} is not one of {', '.join(_PRECISIONS)}; convert the module "
            f"where it is made and leave the trainer out, {COMMAND}"
        )
    fields: dict[str, Any] = {"precision": _PRECISIONS[precision]}
    if trainer.gradient_clip_val:
        algorithm = trainer.gradient_clip_algorithm
        if algorithm is not None and str(getattr(algorithm, "value", algorithm)) != "norm":
            raise UsageError(
                "gradient_clip_algorithm='value' is not supported, only 'norm'; clip in "
                f"training_step, {COMMAND}"
            )
        fields["clip_norm"] = float(trainer.gradient_clip_val)
    limit = trainer.limit_train_batches
    overfit = getattr(trainer, "overfit_batches", 0.0)
    if overfit:
        raise UsageError(f"overfit_batches={overfit} is not supported; give a Subset of the data")
    if limit is None or (isinstance(limit, float) and limit == 1.0):  # 1 is one batch
        return fields
    fields["order"] = LimitedOrder(data, limit)
    return fields


def refuse_callbacks(trainer: Any) -> None:
    """Refuse callbacks that may change the training, since none is called.

    Raises:
        UsageError: it names them.
    """
    found = [
        type(callback).__name__
        for callback in trainer.callbacks
        if not any(kind.__name__ in _UNNEEDED for kind in type(callback).__mro__)
    ]
    if found:
        raise UsageError(
            f"the trainer's callbacks {', '.join(found)} are not called here: leave them out, or "
            "train with Lightning's own trainer and the callback "
            "rightbatch.integrations.lightning.ElasticBatches"
        )


class LimitedOrder:
    """The examples of an epoch with `limit_train_batches`: a share, or a number of batches.

    The batches are those of the loader, whatever the batch size that is trained at.

    Raises:
        UsageError: for a stream, or if the limit leaves no batch.
    """

    def __init__(self, data: LoaderData, limit: float) -> None:
        if not hasattr(data.data, "__len__") or isinstance(data.data, IterableDataset):
            raise UsageError(
                f"limit_train_batches={limit} needs data with a length, and an IterableDataset has "
                "none: leave the limit out, and end the data set itself where the epoch ends"
            )
        if not limit:  # a share may leave nothing too, but of the sampler's own batches
            limited_batches("limit_train_batches", limit, data.batches(len(data.data)))
        self._data, self._limit = data, limit

    def __call__(self, seed: int, epoch: int) -> Sequence[int]:
        """Return the first examples of the whole order.

        Raises:
            UsageError: if a share of the batches is less than one, or the loader drops its only
                batch.
        """
        whole, size = self._data.order, self._data.batch_size
        order = whole(seed, epoch) if whole else order_of(len(self._data.data), seed, epoch)
        batches = self._data.batches(len(order))
        return order[: limited_batches("limit_train_batches", self._limit, batches) * size]


def limited_batches(name: str, limit: float | None, batches: int) -> int:
    """Return how many of a loader's batches a trainer's limit leaves: an int is a number of them.

    Raises:
        UsageError: if it is none.
    """
    if limit is None:
        return batches
    found = int(batches * limit) if isinstance(limit, float) else min(limit, batches)
    if not found:
        raise UsageError(
            f"{name}={limit} leaves no batch of {batches}; give a number of batches of at least 1, "
            "or a larger share"
        )
    return found
