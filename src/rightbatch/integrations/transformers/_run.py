"""The schedule and the evaluation of a Transformers `Trainer` around a `Workload`'s own loop."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rightbatch._errors import UsageError
from rightbatch._workload.callbacks import TrainingRun, WorkloadCallbacks
from rightbatch.integrations._loaders import COMMAND, loader_data

_UNNEEDED = {
    "DefaultFlowCallback",
    "ProgressCallback",
    "NotebookProgressCallback",
    "PrinterCallback",
}
_WATCHING = ("GreedyLR",)
_SPEED = {
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "tokens_per_second",
    "model_preparation_time",
    "jit_compilation_time",
}
"""Measurements that the trainer adds to the metrics, without their prefix."""


class TrainerRun(WorkloadCallbacks):
    """Makes the trainer's schedule, steps one that watches a metric, and evaluates."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._own_schedule = trainer.lr_scheduler
        self._watching: Any = None
        self._run: TrainingRun | None = None

    @property
    def has_metrics(self) -> bool:
        """Whether the trainer's evaluation has more than a loss over one data set."""
        data = self._trainer.eval_dataset
        if data is None:
            return False
        return self._trainer.compute_metrics is not None or isinstance(data, dict)

    def evaluation_data(self) -> Any:
        """Return the examples whose loss is evaluated; None for none, or several data sets.

        Raises:
            UsageError: for a stream.
        """
        data = self._trainer.eval_dataset
        if data is None or isinstance(data, dict):
            return None
        return loader_data(self._trainer.get_eval_dataloader()).fixed()

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the metrics of the trainer's evaluation, without their prefix for one data set.

        Raises:
            UsageError: if the trainer evaluates on another device.
        """
        trainer = self._trainer
        device = next(model.parameters()).device
        if trainer.args.device.type != device.type:
            raise UsageError(
                f"the trainer evaluates on {trainer.args.device}, and the training runs on "
                f"{device}: give its TrainingArguments use_cpu=True, or --device"
            )
        data = trainer.eval_dataset
        several = data if isinstance(data, dict) else {"": data}
        found: dict[str, float] = {}
        for name, each in several.items():
            prefix = f"eval_{name}" if name else "eval"
            with _unobserved(trainer), contextlib.redirect_stdout(io.StringIO()):
                result = trainer.evaluate(eval_dataset=each, metric_key_prefix=prefix)
            for key, value in result.items():
                is_speed = key.removeprefix(f"{prefix}_") in _SPEED
                if isinstance(value, int | float) and key.startswith(prefix) and not is_speed:
                    found[key if name else key.removeprefix("eval_")] = float(value)
        if not isinstance(data, dict):
            found.pop("loss", None)  # the loop has it as evaluation_loss
        return found

    def schedule(self, optimizer: Optimizer, steps: int) -> Any:
        """Return the trainer's schedule over `steps` updates."""
        self._trainer.lr_scheduler = self._own_schedule  # else the one of another training
        made = self._trainer.create_scheduler(steps, optimizer)
        is_watching = isinstance(made, ReduceLROnPlateau) or type(made).__name__ in _WATCHING
        self._watching = made if is_watching else None
        return _Unstepped(made) if is_watching else made

    def on_start(self, run: TrainingRun) -> None:
        self._run = run
        if not run.writes_model:
            return
        trainer = self._trainer
        found = [
            type(each).__name__
            for each in trainer.callback_handler.callbacks
            if type(each).__name__ not in _UNNEEDED
            and not type(each).__module__.startswith("transformers.integrations")
        ]
        if trainer.args.load_best_model_at_end:
            found.append("load_best_model_at_end")
        if found:
            raise UsageError(
                f"train does not run the trainer's {', '.join(found)}: leave it out, or train with "
                "rightbatch.integrations.transformers.ElasticTrainer, which does and survives "
                f"running out of memory, {COMMAND}"
            )

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self._watching is None or self._run is None:
            return
        name = (self._trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
        name = "evaluation_loss" if name == "loss" else name
        known = dict(metrics)
        if name not in known:  # not evaluated in this epoch
            known |= self._run.evaluate()
        if name not in known:
            raise UsageError(
                f"the schedule watches {name!r}, which is not evaluated; the metrics are: "
                f"{', '.join(sorted(known))}. Give an eval_dataset, and metric_for_best_model"
            )
        self._watching.step(known[name])


@contextlib.contextmanager
def _unobserved(trainer: Any) -> Iterator[None]:
    """Switch the trainer's callbacks off, which write to logs and trackers."""
    handler, log = trainer.callback_handler, vars(trainer).get("log")
    callbacks, handler.callbacks = handler.callbacks, []
    trainer.log = lambda *_, **__: None
    try:
        yield
    finally:
        handler.callbacks = callbacks
        if log is None:
            del trainer.log
        else:
            trainer.log = log


class _Unstepped:
    """A schedule that is stepped by its metric alone, not after updates."""

    def __init__(self, schedule: Any) -> None:
        self._schedulers = [schedule]
        self.last_epoch = 0

    def step(self) -> None:
        self.last_epoch += 1

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "schedule": self._schedulers[0].state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_epoch = state["last_epoch"]
        self._schedulers[0].load_state_dict(state["schedule"])
