"""A Transformers `Trainer` whose training and evaluation survive running out of memory."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import nested_concat

from rightbatch._elastic import Elastic
from rightbatch._elastic.gradients import add_gradients, separate_gradients
from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch
from rightbatch.integrations.transformers._batch import (
    IGNORED,
    TrainerBatches,
    at_least_one,
    copied,
)
from rightbatch.integrations.transformers._loss_scale import LossScale


class ElasticMixin:
    """Runs each of the trainer's micro-batches in parts that fit; list it before a `Trainer`.

    `micro_batch_size` is the largest part, `elastic_options` are the options of `Elastic`.
    Callbacks, logging, saving, resuming and the trainer's own batch size stay as they are.

    Raises:
        UsageError: with several processes, FSDP or DeepSpeed.
    """

    elastic_options: dict[str, Any]

    def __init__(
        self, *arguments: Any, micro_batch_size: int | str = "auto", **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.elastic_options = {"micro_batch_size": micro_batch_size}
        self.elastic: Elastic | None = None
        self._batches = TrainerBatches(self)
        self._armed = ExitStack()
        self._owners: tuple[Any, Any] = (None, None)
        self._items: Tensor | int | None = None
        self._is_unlabelled = False
        self._loss_scale = LossScale(self, self._batches)
        self._scale = 1.0
        trainer: Any = self
        if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
            raise UsageError(
                "ElasticTrainer runs in one process on one device; with several, write your own "
                "loop with rightbatch.Elastic on the DDP model"
            )
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise UsageError("ElasticTrainer does not run with DeepSpeed or FSDP")

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run one of the trainer's micro-batches; adds to the existing gradients.

        One without labels adds a loss of zero, as in the trainer: the others of its update have
        some.
        """
        trainer: Any = self
        model.train()
        if hasattr(trainer.optimizer, "train") and callable(trainer.optimizer.train):
            trainer.optimizer.train()
        inputs = trainer._prepare_inputs(inputs)
        elastic = self._elastic_for(model)
        labels = self._batches.count(inputs)
        self._items, self._is_unlabelled = num_items_in_batch, not labels
        self._scale = self._loss_scale.of(model, inputs, labels, num_items_in_batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        with separate_gradients(parameters) as found:
            report = elastic.gradients(inputs)
        add_gradients(parameters, found)
        return report.mean_loss * self._scale

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Evaluate in parts, and return their loss, logits and labels joined."""
        trainer: Any = self
        elastic = self._elastic_for(model)
        self._is_unlabelled = False

        def predict(model: nn.Module, part: Batch) -> Any:
            own: Any = super(ElasticMixin, trainer)
            return own.prediction_step(model, part, prediction_loss_only, ignore_keys=ignore_keys)

        results = elastic.evaluate(trainer._prepare_inputs(inputs), predict)
        losses = [(loss, count) for (loss, _, _), count in results if loss is not None]
        logits, labels = (_together([result[field] for result, _ in results]) for field in (1, 2))
        return _mean(losses), logits, labels

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train; meanwhile a step of the optimizer that fails is undone."""
        try:
            return super().train(*arguments, **keywords)  # type: ignore[misc]
        finally:
            self._armed.close()
            self.elastic, self._owners = None, (None, None)

    def _elastic_for(self, model: nn.Module) -> Elastic:
        """Return the `Elastic` of the trainer's model and optimizer.

        An evaluation may come before `train`, which makes an optimizer, and with `model_init`
        another model.
        """
        trainer: Any = self
        owners = (trainer.model, trainer.optimizer)
        is_same = all(one is other for one, other in zip(owners, self._owners, strict=True))
        if self.elastic is None or not is_same:
            self._armed.close()
            self.elastic, self._owners = self._make(model), owners
        return self.elastic

    def _make(self, model: nn.Module) -> Elastic:
        trainer: Any = self
        optimizer = trainer.optimizer
        inner = getattr(optimizer, "optimizer", optimizer)
        if inner is None:  # evaluation only
            inner = torch.optim.SGD(model.parameters(), lr=0.0)
        elastic = Elastic(
            model,
            inner,
            self._loss_of,
            backward=lambda loss: trainer.accelerator.backward(loss * self._scale),
            **{"count": self._count, "split": self._batches.split} | self.elastic_options,
        )
        self._armed.enter_context(elastic.atomic_update())
        return elastic

    def _count(self, part: Any) -> float:
        """Return what the loss averages over; examples in a micro-batch without any label."""
        return self._batches.examples(part) if self._is_unlabelled else self._batches.count(part)

    def _loss_of(self, model: nn.Module, part: dict[str, Any]) -> Tensor:
        trainer: Any = self
        items = None if self._items is None else at_least_one(self._batches.items(part))
        with trainer.compute_loss_context_manager():
            loss: Tensor = trainer.compute_loss(model, copied(part), num_items_in_batch=items)
        return loss


class ElasticTrainer(ElasticMixin, Trainer):
    """Transformers' `Trainer` with `ElasticMixin`."""


def _mean(losses: list[tuple[Tensor, float]]) -> Tensor | None:
    """Return the mean over all parts, None without losses; a part without labels has a NaN.

    Where no part has a label it is the plain mean, which is NaN as the loss of the whole batch is.
    """
    counted = [(loss, count) for loss, count in losses if count] or [
        (each, 1) for each, _ in losses
    ]
    whole = sum(count for _, count in counted)
    parts = [loss * (count / whole) for loss, count in counted]
    return torch.stack(parts).sum(dim=0) if parts else None


def _together(parts: list[Any]) -> Any:
    whole = parts[0]
    if whole is None:  # prediction_loss_only
        return None
    for part in parts[1:]:
        whole = nested_concat(whole, part, padding_index=IGNORED)
    return whole
