"""Makes Ultralytics' training survive out-of-memory errors, in any epoch and in validation.

After such an error in the first epoch on one GPU, Ultralytics halves the batch and restarts the
epoch; later the training ends. Here a batch that does not fit is run in parts within its step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import ClassificationModel, RTDETRDetectionModel
from ultralytics.utils.torch_utils import unwrap_model

from rightbatch import _faults
from rightbatch._device.caches import release
from rightbatch._elastic import Elastic, Event
from rightbatch._elastic.events import log_event
from rightbatch._elastic.gradients import Failure, add_gradients, failure_from, separate_gradients
from rightbatch._errors import NothingFitsError
from rightbatch.integrations.ultralytics._batches import images_in, split


class ElasticYolo:
    """Callbacks of a trainer, active from `on_train_start` to `on_train_end`.

    The loss of a detector is divided by a sum over the batch, so the sum over parts is not exactly
    that of the whole. As long as memory suffices there is one part, or parts of `micro_batch_size`.
    Not for DDP, whose processes Ultralytics starts.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        micro_batch_size: int | None = None,
        on_event: Callable[[Event], object] = log_event,
    ) -> None:
        self._trainer = trainer
        self._micro_batch_size, self._on_event = micro_batch_size, on_event
        self._elastic: Elastic | None = None
        self._armed = ExitStack()
        self._items: list[tuple[dict[str, Any], int]] = []
        self._whole = 1
        self._validated: Any = None
        self.evaluation_events = 0
        for event, callback in (
            ("on_train_start", self._start),
            ("on_train_end", self._end),
            ("on_val_start", self._start_validation),
            ("on_val_end", self._end_validation),
        ):
            trainer.add_callback(event, callback)

    @property
    def out_of_memory_events(self) -> int:
        """The number of out-of-memory errors that the training survived."""
        counts = self._elastic.counts if self._elastic else {}
        lost = counts.get("out_of_memory", 0) + counts.get("rolled_back", 0)
        return lost + self.evaluation_events

    @property
    def micro_batch_size(self) -> int | None:
        """The size in use; None before the training."""
        return self._elastic.micro_batch_size if self._elastic else None

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean loss per image of a batch in one part, without an update."""
        loss, _ = self._loss_of(batch)
        mean: Tensor = loss.sum() / self._factor(batch)
        return mean

    def close(self) -> None:
        """Restore the model if the training ended early."""
        if self._elastic is not None:
            self._end(self._trainer)

    def _start(self, trainer: Any) -> None:
        model = trainer.model
        self._loss_of = model.forward
        self._elastic = Elastic(
            model,
            trainer.optimizer,
            self._loss,
            micro_batch_size=self._micro_batch_size or int(trainer.batch_size),
            count=images_in,
            split=partial(split, overlap=bool(getattr(trainer.args, "overlap_mask", True))),
            backward=lambda loss: trainer.scaler.scale(loss * self._whole).backward(),
            on_event=self._on_event,
            check=False,  # parts are known not to be exact
        )
        model.forward = self._forward
        self._armed.enter_context(self._elastic.atomic_update())

    def _end(self, trainer: Any) -> None:
        self._armed.close()
        vars(trainer.model).pop("forward", None)

    def _forward(self, x: Any, *arguments: Any, **keywords: Any) -> Any:
        """Return the loss of a batch; computes its gradients too, which `backward` only adds."""
        elastic = self._elastic
        if elastic is None or not isinstance(x, Mapping) or not torch.is_grad_enabled():
            return self._loss_of(x, *arguments, **keywords)
        self._items, self._whole = [], self._factor(x)
        parameters = [p for p in self._trainer.model.parameters() if p.requires_grad]
        with separate_gradients(parameters) as found:
            report = elastic.gradients(x)
        value = report.mean_loss * self._whole
        loss = _Differentiated.apply(parameters[0], value, parameters, found)
        return loss, _mean(self._items[-report.micro_batches :])

    def _loss(self, model: nn.Module, part: dict[str, Any]) -> Tensor:
        """Return the mean loss per image of a part."""
        torch.clear_autocast_cache()  # it would keep what an earlier backward pass freed
        loss, items = self._loss_of(part)
        self._items.append((items, images_in(part)))
        mean: Tensor = loss.sum() / self._factor(part)
        return mean

    def _factor(self, batch: Mapping[str, Any]) -> int:
        """Return the ratio of Ultralytics' loss to the mean: most losses are sums over images."""
        model = unwrap_model(self._trainer.model)
        is_mean = isinstance(model, ClassificationModel | RTDETRDetectionModel)
        return 1 if is_mean else images_in(batch)

    def _start_validation(self, validator: Any) -> None:
        ema = getattr(self._trainer, "ema", None)
        model = ema.ema if ema else self._trainer.model
        if "forward" in vars(model):
            return
        plain = model.forward

        def forward(x: Any, *arguments: Any, **keywords: Any) -> Any:
            if not isinstance(x, Tensor):
                return plain(x, *arguments, **keywords)
            done = _try(plain, x, arguments, keywords)
            if not isinstance(done, Failure):
                return done
            release(x.device)
            if len(x) == 1:
                raise NothingFitsError(
                    f"out of memory in the evaluation of one image: {done.message}",
                    error_type="OutOfMemoryError",
                    error_message=done.message,
                )
            self.evaluation_events += 1
            half = -(-len(x) // 2)
            self._on_event(
                Event(
                    "out_of_memory",
                    self._elastic.state_dict()["steps"] if self._elastic else 0,
                    f"{done.message}; trying {half} images at a time",
                    half,
                    "evaluation",
                )
            )
            halves = [forward(half, *arguments, **keywords) for half in x.chunk(2)]
            return _joined(halves, [len(half) for half in x.chunk(2)])

        model.forward = forward
        self._validated = model

    def _end_validation(self, validator: Any) -> None:
        if self._validated is not None:  # before the model is saved in a checkpoint
            vars(self._validated).pop("forward", None)
            self._validated = None


class _Differentiated(torch.autograd.Function):
    """A value whose gradients are already computed; `backward` only adds them.

    They are already scaled by the trainer's scaler, so the incoming gradient is ignored.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, value: Tensor, parameters: list[Any], gradients: list[Any]
    ) -> Tensor:
        ctx.parameters, ctx.gradients = parameters, gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *factors: Any) -> Any:
        add_gradients(ctx.parameters, ctx.gradients)
        return None, None, None, None


def _mean(items: list[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    """Return the mean of the parts' losses by name, weighted by their images."""
    whole = sum(images for _, images in items)
    return {
        name: sum(part[name] * (images / whole) for part, images in items) for name in items[0][0]
    }


def _try(function: Any, x: Tensor, arguments: Any, keywords: Any) -> Any:
    try:
        _faults.enter("evaluation")
        return function(x, *arguments, **keywords)
    except BaseException as error:
        return failure_from(error, "evaluation")


def _joined(parts: list[Any], sizes: list[int]) -> Any:
    """Join the outputs of parts, in nested tuples, lists and mappings."""
    first = parts[0]
    if isinstance(first, Tensor):
        is_per_image = all(
            part.ndim and len(part) == n for part, n in zip(parts, sizes, strict=True)
        )
        return torch.cat(parts) if is_per_image else first
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts], sizes) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined(list(each), sizes) for each in zip(*parts, strict=True))
    return first
