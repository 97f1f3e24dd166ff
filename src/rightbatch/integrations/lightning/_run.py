"""The steps and hooks of a LightningModule around a `Workload`'s own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.callbacks import TrainingRun, WorkloadCallbacks
from rightbatch.integrations._loaders import COMMAND
from rightbatch.integrations.lightning._hooks import (
    call_step,
    examples_in,
    overrides,
    refuse_uncalled,
)
from rightbatch.integrations.lightning._logged import Logged, Values
from rightbatch.integrations.lightning._outputs import Outputs, PartOutputs
from rightbatch.integrations.lightning._schedules import IntervalSchedule, adopt
from rightbatch.integrations.lightning._settings import refuse_callbacks
from rightbatch.integrations.lightning._trainer import TrainerStandIn


class LightningRun(WorkloadCallbacks):
    """Runs a module's steps, and calls its hooks in Lightning's order.

    In a probe only those around fit, validation and the transfer of batches are called, and nothing
    is logged. `validates` says that evaluations run `validation_step`; `configure` calls
    `configure_optimizers` again.
    """

    def __init__(
        self, module: Any, stand_in: TrainerStandIn, owner: Any, others: Sequence[Any], trainer: Any
    ) -> None:
        self._module, self._stand_in, self._owner = module, stand_in, owner
        self._others, self._trainer = others, trainer
        self._logged = Logged(module)
        self._outputs = PartOutputs(is_read=overrides(module, "on_train_batch_end"))
        self._run: TrainingRun | None = None
        self._schedule: IntervalSchedule | None = None
        self._index = self._validation_index = 0
        self._has_begun = self._is_validating = self._is_evaluating = False
        self.validates = False
        self.configure: Callable[[], tuple[Optimizer, list[Any]]] | None = None

    # The steps of the workload.

    def loss(self, module: Any, batch: Batch) -> Tensor:
        """Return the loss of `training_step`, or of `validation_step` where nothing is trained."""
        self._begin()
        if self.validates and not torch.is_grad_enabled():
            return self._validation_loss(self._transferred(batch))
        with self._logged.batch(self._logged.step, examples_in(batch)):
            out = call_step(self._module.training_step, self._transferred(batch), self._index)
        if self._logged.step is not None:
            self._outputs.add(out, batch)
        return loss_in(out)

    def predict(self, module: Any, batch: Batch) -> Any:
        """Return the result of `predict_step`."""
        return call_step(self._module.predict_step, self._transferred(batch), 0)

    def evaluate(self, model: Any) -> dict[str, float]:
        """End a validation: run its other loaders, and return what it logged."""
        values, device = self._logged.validation, self._module.device
        self._begin_validation()
        with self._logged.undone():  # it is called again if memory runs out
            for number, loader in enumerate(self._others, start=1):
                for index, batch in enumerate(loader):
                    here = self._transferred(to_device(batch, device), number)
                    suffix = f"/dataloader_idx_{number}"
                    with self._logged.batch(values, examples_in(here), suffix):
                        self._module.on_validation_batch_start(here, index, number)
                        out = call_step(self._module.validation_step, here, index, number)
                        self._module.on_validation_batch_end(out, here, index, number)
            with self._logged.batch(values):
                self._module.on_validation_epoch_end()
                self._module.on_validation_end()
        self._is_validating = False
        metrics = values.metrics()
        self._stand_in.callback_metrics.update(metrics)
        return metrics

    def schedule(self, optimizer: Optimizer, steps: int) -> Any:
        """Return the module's schedules, made for the training that runs."""
        assert self.configure is not None and self._run is not None
        made, configs = self.configure()
        adopt(optimizer, made, configs)
        self._stand_in.lr_scheduler_configs = configs
        self._schedule = IntervalSchedule(configs, self._run.steps_per_epoch)
        return self._schedule

    def materialize(self, batch: Batch) -> None:
        """Run one step without gradients, which gives lazy parameters their shapes."""
        was_training = self._module.training
        self._module.eval()
        with torch.no_grad():
            call_step(self._module.training_step, self._transferred(batch), 0)
        self._module.train(was_training)

    # The callbacks of the loop.

    def on_start(self, run: TrainingRun) -> None:
        refuse_uncalled(self._module)
        if self._trainer is not None and run.writes_model:
            refuse_callbacks(self._trainer)
        at = self._stand_in
        at.max_epochs, at.world_size = run.epochs, run.processes
        at.num_training_batches = run.steps_per_epoch
        at.estimated_stepping_batches = run.steps_per_epoch * run.epochs
        self._run = run
        self._logged.start()
        self._begin()

    def on_epoch_start(self, epoch: int) -> None:
        self._stand_in.current_epoch = epoch
        self._is_validating = False
        is_resumed = bool(self._logged.training)  # what the hook logs is among it
        with self._logged.batch(None if is_resumed else self._logged.training):
            self._module.on_train_epoch_start()

    def on_step_start(self, batch: Batch, index: int) -> None:
        self._index = self._stand_in.batch_index = index
        self._logged.begin_step()
        if overrides(self._module, "on_train_batch_start"):
            here = self._transferred(to_device(batch, self._module.device))
            with self._logged.batch(self._logged.training):
                found = self._module.on_train_batch_start(here, index)
            if found == -1:
                raise UsageError(
                    "on_train_batch_start returned -1, which skips the rest of an epoch in "
                    f"Lightning; end the data set there instead, {COMMAND}"
                )

    def on_attempt(self) -> None:
        self._logged.begin_attempt()
        self._outputs.reset()

    def on_before_update(self) -> None:
        with self._logged.batch(self._logged.step):
            for optimizer in self._stand_in.optimizers:
                self._module.on_before_zero_grad(optimizer)

    def on_step_end(self, batch: Batch, index: int, loss: Any) -> None:
        self._logged.end_step()
        self._stand_in.global_step += 1
        if overrides(self._module, "on_train_batch_end"):
            here = self._transferred(to_device(batch, self._module.device))
            found = self._outputs.joined()
            self._outputs.reset()
            outputs = found if isinstance(found, Outputs) else Outputs()
            outputs["loss"] = loss
            with self._logged.batch(self._logged.training):
                self._module.on_train_batch_end(outputs, here, index)
        if self._stand_in.should_stop and self._run is not None:
            self._run.stop("the module set trainer.should_stop")

    def on_evaluation_start(self) -> None:
        self._is_validating, self._is_evaluating = False, True
        self._validation_index = 0
        self._logged.validation.reset()

    def on_evaluation_end(self) -> None:
        self._is_validating = self._is_evaluating = False

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        with self._logged.batch(self._logged.training):
            self._module.on_train_epoch_end()
        found = {**self._logged.training.metrics(), **metrics}
        self._stand_in.callback_metrics.update(found)
        if self._schedule is None or self._run is None:
            return
        watching = self._schedule.watching(epoch)
        if any(config.monitor not in found for config in watching):  # not evaluated in this epoch
            found |= self._run.evaluate()
        self._schedule.step_epoch(epoch, found)

    def on_end(self) -> None:
        self._module.on_train_end()
        self._module.on_fit_end()

    def state_dict(self) -> dict[str, Any]:
        checkpoint: dict[str, Any] = {"state_dict": {}}
        if overrides(self._module, "on_save_checkpoint"):
            checkpoint["state_dict"] = self._module.state_dict()
            self._module.on_save_checkpoint(checkpoint)
        own = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        return {
            "global_step": self._stand_in.global_step,
            "checkpoint": own,
            "logged": self._logged.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stand_in.global_step = state.get("global_step", 0)
        if "logged" in state:  # not in checkpoints of earlier versions
            self._logged.load_state_dict(state["logged"])
        if overrides(self._module, "on_load_checkpoint"):
            own = state.get("checkpoint", {})
            self._module.on_load_checkpoint({"state_dict": self._module.state_dict(), **own})

    # The hooks.

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._module.on_fit_start()
            self._module.on_train_start()

    def _begin_validation(self) -> None:
        if not self._is_validating:
            self._is_validating = True
            with self._logged.batch(self._evaluation_values):
                self._module.on_validation_start()
                self._module.on_validation_epoch_start()

    @property
    def _evaluation_values(self) -> Values | None:
        """Where a validation is logged; None for one that is a probe, or compares branches."""
        return self._logged.validation if self._is_evaluating else None

    def _transferred(self, batch: Batch, loader: int = 0) -> Batch:
        """Apply the hooks around the transfer of a batch, whose tensors are on the device."""
        for name, more in (
            ("on_before_batch_transfer", ()),
            ("transfer_batch_to_device", (self._module.device,)),
            ("on_after_batch_transfer", ()),
        ):
            for owner in (self._owner, self._module):  # the data module's hook has precedence
                if owner is not None and overrides(owner, name):
                    batch = getattr(owner, name)(batch, *more, loader)
                    break
        return batch

    def _validation_loss(self, batch: Batch) -> Tensor:
        self._begin_validation()
        suffix = "/dataloader_idx_0" if self._others else ""
        index = self._validation_index
        loader = (0,) if self._others else ()  # as Lightning, which names the only one to no hook
        with self._logged.batch(self._evaluation_values, examples_in(batch), suffix):
            if self._is_evaluating:
                self._module.on_validation_batch_start(batch, index, *loader)
            out = call_step(self._module.validation_step, batch, index, 0)
            found = out if isinstance(out, Tensor) else _entry(out)
            if found is None:
                found = self._logged.loss
            if found is None:
                found = self._loss_of_training_step(batch, index)
            if self._is_evaluating:
                self._module.on_validation_batch_end(out, batch, index, *loader)
        if self._is_evaluating:
            self._validation_index += 1
        return torch.as_tensor(found, device=self._module.device).float().mean()

    def _loss_of_training_step(self, batch: Batch, index: int) -> Tensor:
        try:
            with self._logged.batch(None):
                return loss_in(call_step(self._module.training_step, batch, index))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UsageError(
                "validation_step returns no loss and logs none, and training_step does not take "
                f"its batch ({type(error).__name__}: {error}); return the loss, or log it under a "
                "name that ends with 'loss'"
            ) from error


def loss_in(out: Any) -> Tensor:
    """Return the loss in the result of a training step: itself, or the value under `loss`.

    Raises:
        UsageError: if there is none.
    """
    if isinstance(out, Mapping) and "loss" not in out:
        keys = ", ".join(map(repr, out)) or "none"
        raise UsageError(
            "training_step returned no loss: its dictionary has no key 'loss', the keys are: "
            f"{keys}. Return the loss under that key"
        )
    loss = out["loss"] if isinstance(out, Mapping) else out
    if loss is None:
        raise UsageError(
            "training_step returned no loss, which skips the batch in Lightning; every part of a "
            "batch needs one here: leave such examples out of the data set, or return a loss of "
            "zero (`0.0 * sum(p.sum() for p in self.parameters())`)"
        )
    return loss  # type: ignore[no-any-return]


def _entry(out: Any) -> Any:
    return out.get("loss", out.get("val_loss")) if isinstance(out, Mapping) else None
