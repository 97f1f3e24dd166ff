"""Ultralytics' training with observers after its updates, for the verbs that train."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state, set_random_state
from rightbatch._elastic import Event
from rightbatch._elastic.events import log_event
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._noise import Part
from rightbatch._training.distributed import Processes
from rightbatch._training.facts import TrainingFacts, facts_of
from rightbatch._training.observers import Observers
from rightbatch._training.protocol import BatchTooLargeError, LoopPlan, Observer
from rightbatch._training.scaling import betas_of, scale_optimizer
from rightbatch._training.state import TrainingState
from rightbatch.integrations.ultralytics._arguments import averaging, loop_arguments
from rightbatch.integrations.ultralytics._data import missing_data_refused
from rightbatch.integrations.ultralytics._elastic import ElasticYolo
from rightbatch.integrations.ultralytics._isolation import data_untouched, no_trackers
from rightbatch.integrations.ultralytics._metrics import logged_name
from rightbatch.integrations.ultralytics._setup import check_values, open_model_file
from rightbatch.integrations.ultralytics._step import UltralyticsStep, check_precision

_NOTE = "YOLO's loss is divided by a sum over the micro-batch, so accumulation is not exact"
_HELD_IMAGES = ("buffer", "ims", "im_hw0", "im_hw")
"""Attributes of a data set with cached images; mosaics use those in `buffer`."""


class _StopTraining(Exception):
    """Ends Ultralytics' training after an observer stopped it."""


@dataclass(frozen=True)
class _Update:
    """The report of an update for observers."""

    mean_loss: Tensor


class UltralyticsLoop:
    """Trains with an update every `plan.batch_size` images.

    With `plan.out` the training is unchanged, with Ultralytics' validation, files and accumulation.
    Without, no files are kept, observers evaluate, `ElasticYolo` runs a batch in parts instead of
    accumulation, and the batch size is the same in the warm-up. If the plan has factors, they scale
    the learning rate, its warm-up for biases, and the decay of the averaged weights.
    """

    def __init__(
        self,
        overrides: Mapping[str, Any],
        plan: LoopPlan,
        processes: Processes,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.plan, self.processes = plan, processes
        self.device = processes.device
        self._weights = overrides["model"]
        self._arguments = loop_arguments(overrides, plan, str(processes.device))
        self._observers = Observers(observers)
        self._trainer: Any = None
        self._elastic: ElasticYolo | None = None
        self._step: UltralyticsStep | None = None
        self._pending, self._seen = 0, 0
        self._updated = False
        self._stopped = ""
        self.examples = 0
        self.learning_rate: float | None = None
        self.state = TrainingState(plan.batch_size)

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self._trainer.model
        return model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._trainer.optimizer
        return optimizer

    @property
    def micro_batch_size(self) -> int | None:
        """Images per forward pass; None before the training."""
        return self._elastic.micro_batch_size if self._elastic else None

    @property
    def population(self) -> int | None:
        """The number of distinct images; None with augmentation."""
        return None if self._is_augmented else self.examples

    @property
    def is_evaluated(self) -> bool:
        return True

    @property
    def facts(self) -> TrainingFacts:
        return facts_of(
            self.model,
            self.optimizer,
            workers=self._trainer.args.workers,
            drop_last=False,
            precision=None,
            notes=(_NOTE,),
        )

    def run(self) -> TrainingState:
        """Train to the end.

        Raises:
            BatchTooLargeError: if the data set leaves one image for the last batch.
            NothingFitsError: if memory runs out even in the smallest parts.
        """
        check_values(self._arguments)
        caches = self._arguments.get("cache") == "disk"
        model = open_model_file(self._weights)
        for event, callback in (
            ("on_pretrain_routine_start", self._on_prepare),
            ("on_train_start", self._on_start),
            ("on_train_epoch_start", self._on_epoch_start),
            ("on_train_batch_end", self._on_batch_end),
            ("on_train_epoch_end", self._on_epoch_end),
            ("on_fit_epoch_end", self._on_validated),
        ):
            model.add_callback(event, callback)
        try:
            with data_untouched(caches_images=caches), missing_data_refused():
                if self.plan.out is not None:
                    self._observers.begin_epoch()
                    model.train(**self._arguments)
                    self._finish(model)
                else:
                    self._run_without_files(model)
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(self._what_remains()) from interruption
        finally:
            if self._elastic is not None:
                self._elastic.close()
            if self._trainer is not None:
                self._observers.end(self)
        return self.state

    def stop(self, reason: str) -> None:
        """End the training after this update; with files, after this epoch."""
        self._stopped = reason
        self._trainer.stop = True

    def evaluate(self) -> dict[str, float]:
        """Validate; return metrics and losses by Ultralytics' logged names, and the summed loss."""
        trainer = self._trainer
        before = random_state(self.device)
        try:
            found, _ = trainer.validate()
        finally:
            set_random_state(before, self.device)
        found = (found or {}) | trainer.label_loss_items(trainer.tloss, prefix="train")
        if trainer.args.freeze:
            trainer._model_train()  # the validation sets all layers to training
        losses = [float(value) for name, value in found.items() if name.startswith("val/")]
        values = {logged_name(name): float(value) for name, value in found.items()}
        return {"evaluation_loss": sum(losses), **values}

    def micro_batches(self, most: int | None = None) -> Iterator[Part]:
        """Yield micro-batches; endless with augmentation, which changes every image.

        The data set is restored at the end.
        """
        trainer = self._trainer
        data = trainer.train_loader.dataset
        size = min(self.micro_batch_size or 1, self.plan.batch_size)
        if most is not None and size > most:
            size = max(self.plan.sizes.at_most(most), self.plan.sizes.step)
        size = min(max(size, 2), self.examples)  # BatchNorm at 32 pixels has one value per image
        generator = random.Random(self.plan.seed + self.state.steps)
        with _kept_images(data):
            while True:
                order = generator.sample(range(self.examples), self.examples)
                for start in range(0, len(order) - size + 1, size):
                    items = [data[index] for index in order[start : start + size]]
                    loss = partial(self._loss, trainer.train_loader.collate_fn(items))
                    yield loss, size, size * trainer.scaler.get_scale()
                if not self._is_augmented:
                    return

    @property
    def _is_augmented(self) -> bool:
        return bool(getattr(self._trainer.train_loader.dataset, "augment", True))

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss per image."""
        assert self._elastic is not None and self._step is not None
        with self._step.precision():
            return self._elastic.loss(self._step.prepare(batch))

    def _run_without_files(self, model: Any) -> None:
        with (
            no_trackers(),
            tempfile.TemporaryDirectory(prefix="rightbatch-", ignore_cleanup_errors=True) as folder,
        ):
            try:
                model.train(**self._arguments, project=folder)
            except _StopTraining:
                pass
            except ValueError as error:
                if "BatchNorm" not in str(error):
                    raise
                raise BatchTooLargeError(str(error)) from error

    def _on_prepare(self, trainer: Any) -> None:
        self._trainer = trainer
        if int(trainer.world_size or 1) > 1:
            raise UsageError(
                "rightbatch trains with Ultralytics on one device; on several, call "
                "rightbatch.integrations.ultralytics.install() in your own script"
            )
        check_precision(trainer)
        micro = self.plan.micro_batch_size
        parts = min(int(micro), self.plan.batch_size) if micro != "auto" else None
        if self.plan.out is not None:
            parts = None  # Ultralytics accumulates
        self._elastic = ElasticYolo(trainer, micro_batch_size=parts, on_event=self._on_event)

    def _on_start(self, trainer: Any) -> None:
        self._step = UltralyticsStep(trainer)
        self.examples = len(trainer.train_loader.dataset)
        self.device = trainer.device
        rate = 1.0
        if self.plan.factors is not None:
            batch_factor, rate = self.plan.factors(betas_of(trainer.optimizer))
            scale_optimizer(trainer.optimizer, batch_factor, rate, trainer.scheduler)
            trainer.args.warmup_bias_lr *= rate
            trainer.ema.decay = averaging(trainer.ema.decay, batch_factor)
        self.learning_rate = float(trainer.args.lr0) * rate
        if self.plan.schedule_epochs is not None:
            trainer.epochs = self.plan.epochs  # an observer ends it
        trainer.optimizer.register_step_post_hook(lambda *_: setattr(self, "_updated", True))
        self._observers.start(self)

    def _on_epoch_start(self, trainer: Any) -> None:
        if self.plan.out is None and getattr(trainer, "_oom_retries", False):
            # Ultralytics would restart the epoch with half the batch, which changes the training.
            raise NothingFitsError(
                f"out of memory outside of a step at batch size {self.plan.batch_size}",
                error_type="OutOfMemoryError",
                error_message="Ultralytics would continue with half the batch size",
            )
        self._pending, self._seen = 0, 0
        if self.plan.out is None:
            self._observers.begin_epoch()

    def _on_batch_end(self, trainer: Any) -> None:
        at = self.state
        images = min(trainer.batch_size, self.examples - self._seen)
        self._seen, self._pending = self._seen + images, self._pending + images
        if not self._updated and self.plan.out is not None:
            return
        self._updated = False
        at.steps += 1
        at.examples, self._pending = at.examples + self._pending, 0
        at.seconds += self._observers.seconds_of_step(at.steps)
        self._observers.step(self, _Update(_total(trainer.loss_items)))
        self._end_if_stopped()

    def _on_epoch_end(self, trainer: Any) -> None:
        if self.plan.out is not None:
            return
        at = self.state
        loss = float(_total(trainer.tloss))
        at.metrics = {"loss": loss} | self._observers.epoch_metrics(self)
        at.epoch += 1
        self._observers.epoch(self)
        if at.epoch == self.plan.epochs:
            raise _StopTraining
        self._end_if_stopped()

    def _on_validated(self, trainer: Any) -> None:
        if self.plan.out is None:
            return
        self.state.epoch = trainer.epoch + 1
        self.state.metrics = {name: float(value) for name, value in trainer.metrics.items()}
        self._observers.epoch(self)

    def _end_if_stopped(self) -> None:
        if self._stopped and self.plan.out is None:
            raise _StopTraining

    def _what_remains(self) -> str:
        """Return the message of Ctrl-C."""
        last = None if self.plan.out is None else self.plan.out / "weights" / "last.pt"
        after = f"interrupted after {self.state.steps} updates"
        if last is not None and last.is_file():
            return f"{after}; continue with yolo train resume model={last}"
        return after

    def _finish(self, model: Any) -> None:
        at, trainer = self.state, self._trainer
        at.examples += self._pending
        at.seconds += self._observers.seconds()
        at.out_of_memory_events += trainer._oom_retries
        results = getattr(model.metrics, "results_dict", None) or {}
        at.metrics = {name: float(value) for name, value in results.items()}

    def _on_event(self, event: Event) -> None:
        if self.plan.out is not None:
            log_event(event)
        self._observers.event(self, event)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([loss.detach().float().reshape(()) for loss in losses.values()]).sum()


@contextmanager
def _kept_images(data: Any) -> Iterator[None]:
    """Restore the data set's cached images at the end."""
    kept = {name: list(held) for name in _HELD_IMAGES if (held := getattr(data, name, None))}
    try:
        yield
    finally:
        for name, held in kept.items():
            getattr(data, name)[:] = held
