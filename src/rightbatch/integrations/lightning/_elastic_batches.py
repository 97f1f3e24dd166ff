"""A Lightning callback that runs each batch as one update, in parts that fit."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS

from rightbatch._elastic import Elastic, StepReport
from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._workload.batch import Batch, count_examples, split_batch
from rightbatch.integrations.lightning._deferred_log import DeferredLog
from rightbatch.integrations.lightning._hooks import call_step, overrides
from rightbatch.integrations.lightning._outputs import Outputs, PartOutputs, is_read
from rightbatch.integrations.lightning._run import loss_in
from rightbatch.integrations.lightning._schedules import not_logged

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
        self._log: DeferredLog | None = None
        self._outputs = PartOutputs(is_read=False)
        self._batch_index = 0
        self._optimizer: Any = None
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
        pl_module.training_step = lambda batch, batch_idx=0: self._train(
            trainer, pl_module, batch, batch_idx
        )
        pl_module.validation_step = lambda batch, batch_idx=0, *loader: self._validate(
            trainer, pl_module, batch, batch_idx, loader
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take over the updates.

        Lightning has then read which metrics its schedules watch, and its tuners have trained.
        """
        pl_module.automatic_optimization = False
        self._outputs = PartOutputs(is_read=is_read(trainer, pl_module, "on_train_batch_end"))
        _share_steps(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the module's steps."""
        if self._training_step is None:
            return
        for name in ("training_step", "validation_step"):
            vars(pl_module).pop(name, None)
        pl_module.automatic_optimization = True
        self._training_step = self._validation_step = self._log = None
        self.elastic = self._optimizer = None

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

    def _train(self, trainer: Any, module: Any, batch: Batch, index: int) -> Any:
        if module.automatic_optimization:  # a LearningRateFinder or BatchSizeFinder trains
            return call_step(self._training_step, batch, index)
        elastic = self._elastic_for(module)
        self._batch_index = index
        assert self._log is not None
        with self._log.batch(has_attempts=True):
            report = self.report = elastic(batch)
        _share_steps(trainer)
        self._step_schedules(trainer, "step", trainer.global_step)
        found = self._outputs.joined()
        self._outputs.reset()
        outputs = found if isinstance(found, Outputs) else Outputs()
        outputs["loss"] = report.mean_loss
        return outputs

    def _validate(
        self, trainer: Any, module: Any, batch: Batch, index: int, loader: tuple[int, ...]
    ) -> Any:
        elastic = self._elastic_for(module)
        log = self._log
        assert log is not None
        outputs = PartOutputs(is_read=is_read(trainer, module, "on_validation_batch_end"))

        def step(_: nn.Module, part: Batch) -> None:
            with log.part(part):
                outputs.add(call_step(self._validation_step, part, index, *loader), part)

        with log.batch(has_attempts=False):
            elastic.evaluate(batch, step)
        return outputs.joined()

    def _elastic_for(self, module: Any) -> Elastic:
        """Return the `Elastic` of the module's optimizer, which Lightning may make anew."""
        wrapped = module.optimizers()
        if isinstance(wrapped, list):
            raise UsageError(f"ElasticBatches needs one optimizer; got {len(wrapped)}")
        if self.elastic is None or wrapped is not self._optimizer:
            self.elastic, self._optimizer = self._make(module, wrapped), wrapped
        return self.elastic

    def _make(self, module: Any, wrapped: Any) -> Elastic:
        if isinstance(wrapped.optimizer, LBFGS):
            raise UsageError(
                "LBFGS evaluates the loss several times in a step; train it without "
                "ElasticBatches, at a batch size from `rightbatch fit`"
            )
        self._log = DeferredLog(module)  # which now has all its metrics
        elastic = Elastic(
            module,
            wrapped.optimizer,
            self._loss,
            backward=module.manual_backward,
            update=wrapped.step,
            before_attempt=self._attempt,
            before_update=lambda: self._before_update(module, wrapped),
            **{"count": count_examples, "split": split_batch} | self._options,
        )
        if self._state is not None:
            elastic.load_state_dict(self._state)
        return elastic

    def _attempt(self) -> None:
        assert self._log is not None
        self._log.attempt()
        self._outputs.reset()

    def _loss(self, module: nn.Module, part: Batch) -> Tensor:
        assert self._log is not None
        with self._log.part(part):
            out = call_step(self._training_step, part, self._batch_index)
        self._outputs.add(out, part)
        return loss_in(out)

    def _before_update(self, module: Any, optimizer: Any) -> None:
        """Call the hook between forward pass and update, and clip the gradients."""
        for callback in module.trainer.callbacks:
            callback.on_before_zero_grad(module.trainer, module, optimizer.optimizer)
        module.on_before_zero_grad(optimizer.optimizer)
        value, algorithm = self._clip
        if value or overrides(module, "configure_gradient_clipping"):
            module.configure_gradient_clipping(
                optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm or "norm"
            )

    def _step_schedules(self, trainer: Any, interval: str, count: int) -> None:
        for config in trainer.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency:
                continue
            metric = None
            if config.reduce_on_plateau:
                metric = trainer.callback_metrics.get(config.monitor)
                if metric is None and config.strict:
                    raise not_logged(config, trainer.callback_metrics)
                if metric is None:
                    continue
            trainer.lightning_module.lr_scheduler_step(config.scheduler, metric)


def _share_steps(trainer: Any) -> None:
    """Count a step in both of Lightning's counters.

    `trainer.global_step` and checkpoints have that of manual optimization during the training, and
    that of automatic optimization before, after, and in a training without this callback.
    """
    loop = trainer.fit_loop.epoch_loop
    counters = (
        loop.automatic_optimization.optim_progress.optimizer.step.total,
        loop.manual_optimization.optim_step_progress.total,
    )
    steps = max(counter.completed for counter in counters)
    for counter in counters:
        counter.ready = counter.completed = steps


def _refuse(trainer: Any, module: Any) -> None:
    if not module.automatic_optimization:
        raise UsageError(
            "the module uses manual optimization (automatic_optimization=False); call "
            "rightbatch.Elastic in its training_step instead of this callback"
        )
    unused = [name for name in ("optimizer_step", "optimizer_zero_grad") if overrides(module, name)]
    if unused:
        raise UsageError(
            f"the module overrides {' and '.join(unused)}, which ElasticBatches does not call; "
            "call rightbatch.Elastic in a training_step with manual optimization"
        )
    scheduled = [
        type(each).__name__
        for each in trainer.callbacks
        if any(kind.__name__ == "GradientAccumulationScheduler" for kind in type(each).__mro__)
    ]
    if trainer.accumulate_grad_batches != 1 or scheduled:
        what = f"the callback {scheduled[0]}" if scheduled else "accumulate_grad_batches"
        raise UsageError(
            f"{what} cannot be used with ElasticBatches, which accumulates itself "
            "(accumulate_grad_batches must be 1); give the loader the whole batch"
        )
    strategy = type(trainer.strategy).__name__
    if strategy != "SingleDeviceStrategy":
        raise UsageError(
            f"ElasticBatches runs on one device, not with {strategy}, which would reduce the "
            "gradients of every part; use rightbatch.Elastic on the DDP model in your own loop, or "
            "`torchrun -m rightbatch train` with a Workload of the module"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UsageError("ElasticBatches does not support 16-mixed; use bf16-mixed or 32-true")
