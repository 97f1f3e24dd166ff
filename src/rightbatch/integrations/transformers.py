"""Transformers: a `Trainer` whose training and evaluation survive running out of memory.

::

    from rightbatch.integrations.transformers import ElasticTrainer
    trainer = ElasticTrainer(model=model, args=arguments, train_dataset=data)

For your own trainer: `class MyTrainer(ElasticMixin, BaseTrainer)`. For `fit`, `predict`, `tune` and
`train`, a factory that makes a `Workload` of a trainer::

    rb.tune(lambda: workload(Trainer(model=model(), args=arguments, train_dataset=data)))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._elastic import Elastic
from rightbatch._elastic.gradients import add_gradients, separate_gradients
from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._workload.batch import Batch, count_examples
from rightbatch._workload.workload import Workload

if find_spec("transformers") is None:
    raise MissingExtraError("transformers", "transformers")
from transformers import Trainer
from transformers.trainer_pt_utils import nested_concat

_IGNORED = -100


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
        self._armed = ExitStack()
        self._items: Tensor | int | None = None
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
        """Run one of the trainer's micro-batches; adds to the existing gradients."""
        trainer: Any = self
        model.train()
        if hasattr(trainer.optimizer, "train") and callable(trainer.optimizer.train):
            trainer.optimizer.train()
        inputs = trainer._prepare_inputs(inputs)
        elastic = self.elastic = self.elastic or self._make(model)
        self._items = num_items_in_batch
        self._scale = (
            _count(inputs) / float(num_items_in_batch)
            if num_items_in_batch is not None
            else 1 / trainer.current_gradient_accumulation_steps
        )
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
        elastic = self.elastic = self.elastic or self._make(model)

        def predict(model: nn.Module, part: Batch) -> Any:
            own: Any = super(ElasticMixin, trainer)
            return own.prediction_step(model, part, prediction_loss_only, ignore_keys=ignore_keys)

        results = elastic.evaluate(trainer._prepare_inputs(inputs), predict)
        losses = [(loss, count) for (loss, _, _), count in results if loss is not None]
        whole = sum(count for _, count in losses)
        mean = sum(loss * (count / whole) for loss, count in losses) if losses else None
        logits, labels = (_together([result[field] for result, _ in results]) for field in (1, 2))
        return mean, logits, labels

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train; meanwhile a step of the optimizer that fails is undone."""
        try:
            return super().train(*arguments, **keywords)  # type: ignore[misc]
        finally:
            self._armed.close()
            self.elastic = None

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
            count=_count,
            split=_split,
            backward=lambda loss: trainer.accelerator.backward(loss * self._scale),
            **self.elastic_options,
        )
        self._armed.enter_context(elastic.atomic_update())
        return elastic

    def _loss_of(self, model: nn.Module, part: dict[str, Any]) -> Tensor:
        trainer: Any = self
        items = None if self._items is None else _count(part)
        with trainer.compute_loss_context_manager():
            loss: Tensor = trainer.compute_loss(model, part, num_items_in_batch=items)
        return loss


class ElasticTrainer(ElasticMixin, Trainer):
    """Transformers' `Trainer` with `ElasticMixin`."""


def workload(trainer: Trainer, **fields: Any) -> Workload:
    """Return a trainer's model, data, collator, optimizer, schedule and clipping as a `Workload`.

    Call it in a factory, since every probe builds its own. `fields` are other fields of `Workload`.
    """
    owner: Any = trainer
    arguments = owner.args
    loader = owner.get_train_dataloader()
    # Several evaluation sets cannot be combined into one.
    unseen = None if isinstance(owner.eval_dataset, dict) else owner.eval_dataset

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        # With num_items_in_batch the loss is divided by the number of labels, as in the trainer.
        loss: Tensor = owner.compute_loss(model, batch, num_items_in_batch=_count(batch))
        return loss

    about: dict[str, Any] = {
        "data": loader.dataset,
        "collate": loader.collate_fn,
        "count": _count,
        "split": _split,
        "evaluation_data": None if unseen is None else owner.get_eval_dataloader().dataset,
        "scheduler": lambda optimizer, steps: owner.create_scheduler(steps, optimizer),
        "clip_norm": arguments.max_grad_norm or None,
        "workers": arguments.dataloader_num_workers,
        "drop_last": arguments.dataloader_drop_last,
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
    }
    return Workload(owner.model, loss, owner.create_optimizer(), **about | fields)


def _count(inputs: dict[str, Any]) -> float:
    """Return what Transformers' losses average over: labels that are not ignored, or examples."""
    labels = inputs.get("labels")
    if isinstance(labels, Tensor):
        return float((labels != _IGNORED).sum())
    return float(count_examples(inputs))


def _split(inputs: Any, n: int) -> Sequence[dict[str, Any]]:
    """Split the tensors with an entry per example into parts of `n`; other values are repeated."""
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    total = max((len(value) for value in tensors.values() if value.ndim), default=0)
    return [
        {
            key: value[start : start + n]
            if isinstance(value, Tensor) and value.ndim and len(value) == total
            else value
            for key, value in inputs.items()
        }
        for start in range(0, total, n)
    ]


def _together(parts: list[Any]) -> Any:
    whole = parts[0]
    if whole is None:  # prediction_loss_only
        return None
    for part in parts[1:]:
        whole = nested_concat(whole, part, padding_index=_IGNORED)
    return whole
