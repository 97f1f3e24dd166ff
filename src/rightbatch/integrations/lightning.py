"""Lightning: a callback that runs each batch of the loader as one update, in parts that fit.

::

    trainer = L.Trainer(callbacks=[ElasticBatches()])
    trainer.fit(module, loader)

For `fit`, `predict`, `tune` and `train`, a factory that makes a `Workload` of the module::

    rb.tune(lambda: workload(Module(), DataLoader(Images())))

The module's `training_step`, `validation_step` and optimizer stay as they are. `self.log` inside
them is called once per part, weighted by its size when Lightning averages over an epoch.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rightbatch._elastic import Elastic, StepReport
from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._workload.batch import Batch, count_examples, split_batch
from rightbatch._workload.workload import Workload

if find_spec("lightning") is not None:
    from lightning.pytorch.callbacks import Callback
elif find_spec("pytorch_lightning") is not None:
    from pytorch_lightning.callbacks import Callback
else:
    raise MissingExtraError("lightning", "lightning")


class ElasticBatches(Callback):
    """Makes the loader's batch the batch of the update; `options` are those of `Elastic`.

    `report` is that of the last step. The trainer's gradient clipping, schedule and checkpoints are
    kept.

    Raises:
        UsageError: when training starts, for manual optimization, several optimizers, accumulation
            in the trainer, several processes, or fp16 with a scaler.
    """

    def __init__(self, *, micro_batch_size: int | str = "auto", **options: Any) -> None:
        self._options = {"micro_batch_size": micro_batch_size, **options}
        self._training_step: Any = None
        self._validation_step: Any = None
        self._state: dict[str, Any] | None = None
        self._batch_index = 0
        self._dataloader: tuple[int, ...] = ()
        self.elastic: Elastic | None = None
        self.report: StepReport | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Replace the module's steps."""
        if stage != "fit":
            return
        _refuse(trainer, pl_module)
        self._training_step = pl_module.training_step
        self._validation_step = pl_module.validation_step
        self._clip = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        pl_module.automatic_optimization = False
        pl_module.training_step = lambda batch, batch_idx=0: self._train(
            trainer, pl_module, batch, batch_idx
        )
        pl_module.validation_step = lambda batch, batch_idx=0, *loader: self._validate(
            trainer, pl_module, batch, batch_idx, loader
        )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the module's steps."""
        if self._training_step is None:
            return
        for name in ("training_step", "validation_step"):
            vars(pl_module).pop(name, None)
        pl_module.automatic_optimization = True
        self._training_step = self._validation_step = None
        self.elastic = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the module's steps; Lightning does not call `teardown` after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Step the schedules with the interval `epoch`."""
        self._step_schedules(trainer, "epoch", trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for Lightning's checkpoints."""
        return self.elastic.state_dict() if self.elastic else self._state or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint; Lightning calls this before the first step."""
        self._state = state_dict or None

    def _train(self, trainer: Any, module: Any, batch: Batch, index: int) -> dict[str, Tensor]:
        elastic = self.elastic = self.elastic or self._make(module)
        self._batch_index = index
        report = self.report = elastic(batch)
        self._step_schedules(trainer, "step", trainer.global_step)
        return {"loss": report.mean_loss}

    def _validate(
        self, trainer: Any, module: Any, batch: Batch, index: int, loader: tuple[int, ...]
    ) -> None:
        elastic = self.elastic = self.elastic or self._make(module)
        elastic.evaluate(batch, lambda _, part: self._validation_step(part, index, *loader))

    def _make(self, module: Any) -> Elastic:
        wrapped = module.optimizers()
        elastic = Elastic(
            module,
            wrapped.optimizer,
            self._loss,
            backward=module.manual_backward,
            update=wrapped.step,
            before_update=lambda: self._clip_gradients(module, wrapped),
            **{"count": count_examples, "split": split_batch} | self._options,
        )
        if self._state is not None:
            elastic.load_state_dict(self._state)
        return elastic

    def _loss(self, module: nn.Module, part: Batch) -> Tensor:
        return _loss_in(self._training_step(part, self._batch_index))

    def _clip_gradients(self, module: Any, optimizer: Any) -> None:
        value, algorithm = self._clip
        if value:
            module.clip_gradients(
                optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm or "norm"
            )

    def _step_schedules(self, trainer: Any, interval: str, count: int) -> None:
        for config in trainer.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency:
                continue
            if config.reduce_on_plateau:
                config.scheduler.step(trainer.callback_metrics[config.monitor])
            else:
                config.scheduler.step()


def workload(
    module: Any,
    loader: DataLoader[Any],
    validation: DataLoader[Any] | None = None,
    **fields: Any,
) -> Workload:
    """Return a LightningModule and its loaders as a `Workload`; call it in a factory.

    The loss is that of `training_step`, the optimizer that of `configure_optimizers`; its schedules
    are not used. The batch size of the loader is ignored. `fields` are other fields of `Workload`
    (`precision=`, `evaluate=`, `scheduler=`).

    Raises:
        UsageError: for manual optimization, or several optimizers.
    """
    if not module.automatic_optimization:
        raise UsageError(
            "the module uses manual optimization (automatic_optimization=False); describe its step "
            "as a rightbatch.Workload"
        )

    def loss(module: Any, batch: Batch) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*self.log.*")  # no trainer to log to
            return _loss_in(module.training_step(batch, 0))

    about: dict[str, Any] = {
        "data": loader.dataset,
        "collate": loader.collate_fn,
        "workers": loader.num_workers,
        "drop_last": loader.drop_last,
        "evaluation_data": validation.dataset if validation is not None else None,
    }
    return Workload(module, loss, _only_optimizer(module.configure_optimizers()), **about | fields)


def _only_optimizer(configured: Any) -> torch.optim.Optimizer:
    """Return the optimizer in any result of `configure_optimizers`.

    Raises:
        UsageError: if there are several, or none.
    """
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    while isinstance(configured, list | tuple) and configured:
        if isinstance(configured[0], torch.optim.Optimizer) and len(configured) > 1:
            if isinstance(configured[1], torch.optim.Optimizer):
                raise UsageError(
                    "a Workload has one optimizer; configure_optimizers returned several"
                )
        configured = configured[0]
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    if not isinstance(configured, torch.optim.Optimizer):
        raise UsageError(f"configure_optimizers must return an optimizer; got {configured!r:.60}")
    return configured


def _loss_in(out: Any) -> Tensor:
    """Return the loss in the result of a training step: itself, or its entry `loss`."""
    loss = out["loss"] if isinstance(out, dict) else out
    if loss is None:
        raise UsageError("training_step returned no loss; Elastic needs one for every part")
    return loss  # type: ignore[no-any-return]


def _refuse(trainer: Any, module: Any) -> None:
    if not module.automatic_optimization:
        raise UsageError(
            "the module uses manual optimization (automatic_optimization=False); call "
            "rightbatch.Elastic in its training_step instead of this callback"
        )
    if trainer.accumulate_grad_batches != 1:
        raise UsageError(
            "accumulate_grad_batches must be 1 with ElasticBatches, which accumulates itself; give "
            "the loader the whole batch"
        )
    strategy = type(trainer.strategy).__name__
    if strategy != "SingleDeviceStrategy":
        raise UsageError(
            f"ElasticBatches runs on one device, not with {strategy}, which would reduce the "
            "gradients of every part; use rightbatch.Elastic on the DDP model in your own loop, or "
            "`torchrun -m rightbatch train` with a Workload of the module"
        )
    if len(trainer.optimizers) > 1:
        raise UsageError(f"ElasticBatches needs one optimizer; got {len(trainer.optimizers)}")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UsageError("ElasticBatches does not support 16-mixed; use bf16-mixed or 32-true")
