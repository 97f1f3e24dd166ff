"""The one abstraction: what is trained, described once, by a factory without arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, default_collate

from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, count_examples, split_batch

Precision = Literal["fp32", "bf16", "fp16"]
_PRECISIONS = get_args(Precision)


@dataclass(frozen=True)
class Workload:
    """A model, its loss, its optimizer and its data: all that a training step needs.

    A *factory* of it, a callable without arguments, is what every verb takes, because it is built
    anew in each probe's process. Build the model on the CPU; the library moves it and the batches.

    `loss(model, batch)` returns the scalar mean over `count(batch)`: over examples, or tokens.
    `split(batch, n)` cuts a batch into parts of at most `n` examples.
    `size(index)` is the relative size of an example where examples differ (a text's length, an
    image's objects); a probe then runs the largest ones.
    `evaluation_data` and `evaluate(model)` are what is measured after an epoch,
    `predict(model, batch)` is inference, by default the model on the batch's inputs.
    `scheduler(optimizer, steps)` makes a learning-rate schedule that is stepped once an update.

    Raises:
        UsageError: where a field cannot be meant.
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

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise UsageError(f"Workload.model is a torch.nn.Module, not {_kind(self.model)}")
        if not isinstance(self.optimizer, Optimizer):
            raise UsageError(
                f"Workload.optimizer is a torch.optim.Optimizer over model.parameters(), "
                f"not {_kind(self.optimizer)}"
            )
        if not callable(self.loss):
            raise UsageError(
                f"Workload.loss is a function of (model, batch), not {_kind(self.loss)}"
            )
        if not isinstance(self.data, Dataset) and not hasattr(self.data, "__getitem__"):
            raise UsageError(f"Workload.data is a Dataset of examples, not {_kind(self.data)}")
        if self.precision not in _PRECISIONS:
            raise UsageError(
                f"Workload.precision is one of {', '.join(_PRECISIONS)}, not {self.precision!r}"
            )
        if self.workers < 0:
            raise UsageError(f"Workload.workers is 0 or more, not {self.workers}")


@dataclass(frozen=True)
class StepSeconds:
    """One training step, taken apart: `loading` its examples in this process, `computing` the
    forward and backward pass, `updating` the optimizer's step."""

    loading: float
    computing: float
    updating: float


def _kind(value: object) -> str:
    return f"{type(value).__name__} ({value!r:.60})"
