"""`Workload`: the description of a training that every verb takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, default_collate

from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, count_examples, split_batch
from rightbatch._workload.callbacks import WorkloadCallbacks
from rightbatch._workload.loss import check_loss

Precision = Literal["fp32", "bf16", "fp16"]
_PRECISIONS = get_args(Precision)


@dataclass(frozen=True)
class Workload:
    """A model with its loss, optimizer and data: everything a training step needs.

    Verbs take a *factory*, a callable without arguments that returns a Workload, because each
    probe builds it in its own process. Build the model on the CPU; rightbatch moves it and the
    batches to the device.

    Args:
        model: the module to train.
        loss: `loss(model, batch)` returns the scalar mean over `count(batch)`.
        optimizer: an optimizer over `model.parameters()`.
        data: a map-style data set; its examples are one epoch.
        collate: makes a batch from a list of examples.
        count: `count(batch)` is what the loss averages over: examples, or tokens.
        split: `split(batch, n)` cuts a batch into parts of at most `n` examples.
        size: `size(index)` is the relative size of an example, if examples differ (a text's
            length, an image's number of objects); a probe then runs the largest ones.
        evaluation_data: examples for the evaluation after an epoch.
        evaluate: `evaluate(model)` returns metrics by name, after an epoch.
        predict: `predict(model, batch)` runs inference; by default the model on the batch's inputs.
        scheduler: `scheduler(optimizer, steps)` returns a schedule that is stepped every update;
            `ReduceLROnPlateau` every epoch, by the evaluation loss, or else the training loss.
        clip_norm: the norm to which gradients are clipped; None for no clipping.
        drop_last: drop the epoch's last batch if it is smaller.
        workers: processes that load data.
        precision: `fp32`, `bf16` or `fp16` (autocast, with a GradScaler for fp16).
        name: shown in reports.
        order: `order(seed, epoch)` returns the indices of an epoch's examples in their order, for a
            sampler of one's own; by default all examples, shuffled.
        callbacks: what a framework does around the steps of a training.

    Raises:
        UsageError: if a field has the wrong type or an invalid value.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    optimizer: Optimizer
    data: Dataset[Any]
    collate: Callable[[list[Any]], Batch] = default_collate
    count: Callable[[Batch], float] = count_examples
    split: Callable[[Batch, int], Sequence[Batch]] = split_batch
    size: Callable[[int], int] | None = None
    evaluation_data: Dataset[Any] | None = None
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    predict: Callable[[nn.Module, Batch], Any] | None = None
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    clip_norm: float | None = None
    drop_last: bool = False
    workers: int = 0
    precision: Precision = "fp32"
    name: str = ""
    order: Callable[[int, int], Sequence[int]] | None = None
    callbacks: WorkloadCallbacks | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise UsageError(
                f"Workload.model must be a torch.nn.Module, got {_describe(self.model)}"
            )
        if not isinstance(self.optimizer, Optimizer):
            raise UsageError(
                f"Workload.optimizer must be a torch.optim.Optimizer over model.parameters(), "
                f"got {type(self.optimizer).__name__}. A training with several optimizers is "
                "measured as a script: `rightbatch fit -- python train.py --batch-size {batch}`"
            )
        if not callable(self.loss):
            raise UsageError(
                f"Workload.loss must be a function of (model, batch), got {_describe(self.loss)}"
            )
        check_loss(self.loss)
        if isinstance(self.data, DataLoader):
            raise UsageError(
                "Workload.data must be a Dataset of examples, got a DataLoader, whose batch size "
                "is fixed: pass data=loader.dataset and collate=loader.collate_fn"
            )
        if isinstance(self.data, Mapping) and 0 not in self.data:
            raise UsageError(
                f"Workload.data must be a Dataset of examples, got {type(self.data).__name__} "
                f"with the keys {', '.join(map(repr, list(self.data)[:4]))}: pass one of its "
                'values, for example data["train"]'
            )
        if not isinstance(self.data, Dataset) and not hasattr(self.data, "__getitem__"):
            raise UsageError(
                f"Workload.data must be a Dataset of examples, got {_describe(self.data)}"
            )
        if self.precision not in _PRECISIONS:
            raise UsageError(
                f"Workload.precision must be one of {', '.join(_PRECISIONS)}, "
                f"got {self.precision!r}"
            )
        if self.workers < 0:
            raise UsageError(f"Workload.workers must be 0 or more, got {self.workers}")


@dataclass(frozen=True)
class StepSeconds:
    """The seconds of one training step by part.

    `loading` is the time to load its examples in this process, `computing` the forward and backward
    pass, `updating` the optimizer's step.
    """

    loading: float
    computing: float
    updating: float


def _describe(value: object) -> str:
    return f"{type(value).__name__} ({value!r:.60})"
