"""The training loop of a `Workload`, with observers at its steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import IterableDataset

from rightbatch._device.random_state import random_state, set_random_state
from rightbatch._elastic import Event, StepReport
from rightbatch._errors import UsageError
from rightbatch._noise import Part
from rightbatch._training.distributed import Processes
from rightbatch._training.epoch import batches, cuts, epoch_order
from rightbatch._training.evaluation import evaluated
from rightbatch._training.facts import TrainingFacts, facts_of
from rightbatch._training.observers import Observers
from rightbatch._training.protocol import LoopPlan, Observer
from rightbatch._training.scaling import betas_of, learning_rate_of, scale_optimizer
from rightbatch._training.state import TrainingState
from rightbatch._training.step import PlainStep, move_state, resize_buffers
from rightbatch._workload.batch import to_device
from rightbatch._workload.callbacks import TrainingRun, WorkloadCallbacks
from rightbatch._workload.held_modules import check_optimizer, move_modules
from rightbatch._workload.item import first_items
from rightbatch._workload.lazy import materialize
from rightbatch._workload.modes import set_training
from rightbatch._workload.module_attributes import ModuleAttributes
from rightbatch._workload.order import epoch_length, training_indices
from rightbatch._workload.workload import Workload
from rightbatch._workload.worst import check_items


class WorkloadLoop:
    """Trains a workload by a plan; `Elastic` runs its updates.

    Raises:
        UsageError: for data without a length, or empty data.
    """

    def __init__(
        self,
        workload: Workload,
        plan: LoopPlan,
        processes: Processes,
        observers: Sequence[Observer] = (),
    ) -> None:
        if isinstance(workload.data, IterableDataset) or not hasattr(workload.data, "__len__"):
            raise UsageError(
                "training needs a map-style data set, whose order can be resumed; for a stream, "
                "write your own loop with rightbatch.Elastic as its step"
            )
        self.workload, self.plan, self.processes = workload, plan, processes
        if not len(workload.data):
            raise UsageError("the workload's data is empty")
        self.examples = epoch_length(workload, plan.seed)
        self.device, self.optimizer = processes.device, workload.optimizer
        check_optimizer(workload)
        materialize(workload)
        move_modules(workload, self.device)
        self.model = workload.model
        self.attributes = ModuleAttributes(self.model)
        move_state(workload.optimizer, self.device)
        processes.share([*self.model.parameters(), *self.model.buffers()])
        steps_per_epoch = len(cuts(workload, self.examples, plan.batch_size))
        epochs = plan.schedule_epochs or plan.epochs
        self._scheduled = steps_per_epoch * epochs
        self._callbacks = workload.callbacks or WorkloadCallbacks()
        self._callbacks.on_start(
            TrainingRun(
                batch_size=plan.batch_size,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                processes=processes.world_size,
                writes_model=plan.out is not None,
                evaluate=self.evaluate,
                stop=self.stop,
            )
        )
        schedule = workload.scheduler
        self.scheduler = schedule(workload.optimizer, self._scheduled) if schedule else None
        self._check_schedule()
        self._schedule_steps = 0
        self.state = TrainingState(plan.batch_size)
        self._observers = Observers(observers)
        self._plain = PlainStep(workload, self.device)
        self.step = self._plain.elastic(
            micro_batch_size=plan.micro_batch_size,
            scheduler=None if self._steps_schedule or self._has_plateau else self.scheduler,
            on_event=self._on_event,
            group=processes.group,
            memory=plan.memory,
            margin=plan.margin,
        )
        if plan.factors is not None:  # after the schedule is made, since it may set learning rates
            batch_factor, rate_factor = plan.factors(betas_of(workload.optimizer))
            scale_optimizer(workload.optimizer, batch_factor, rate_factor, self.scheduler)
        self.learning_rate = learning_rate_of(workload.optimizer)
        self._stopped = ""
        self._are_checked = False

    def _check_schedule(self) -> None:
        missing = [
            name
            for name in ("step", "state_dict", "load_state_dict")
            if self.scheduler is not None and not callable(getattr(self.scheduler, name, None))
        ]
        if missing:
            raise UsageError(
                f"scheduler(optimizer, steps) returned {type(self.scheduler).__name__}, which has "
                f"no {', no '.join(missing)}; return a schedule of torch.optim.lr_scheduler "
                "(LambdaLR takes any function of the step), or one with these methods"
            )

    def _check_items(self, batch: Any, examples: int) -> None:
        """Check that items are examples, if the first batch does not have as many as it has items.

        Raises:
            UsageError: if they are whole batches.
        """
        self._are_checked = True
        w, before = self.workload, random_state(self.device)
        if len(w.split(batch, 1)) == len(self.processes.share_of(range(examples))):
            return
        for item in first_items(w.data, 1):
            check_items(w.count, w.collate, item)
        set_random_state(before, self.device)

    @cached_property
    def population(self) -> int | None:
        """The number of examples: those of a workload are assumed to be the same in every epoch."""
        return len(training_indices(self.workload, self.plan.seed))

    @property
    def micro_batch_size(self) -> int | None:
        return self.step.micro_batch_size

    @property
    def facts(self) -> TrainingFacts:
        w = self.workload
        return facts_of(
            self.model,
            self.optimizer,
            workers=w.workers,
            drop_last=w.drop_last,
            precision=w.precision,
            exactness=self.step.exactness,
        )

    @property
    def is_evaluated(self) -> bool:
        return self.workload.evaluation_data is not None or self.workload.evaluate is not None

    def run(self) -> TrainingState:
        """Train to the end, or until an observer stops it."""
        at = self.state
        self._observers.start(self)
        try:
            while at.epoch < self.plan.epochs and not self._stopped:
                self._epoch()
            self._callbacks.on_end()
        finally:
            self._observers.end(self)
        return at

    def stop(self, reason: str) -> None:
        """End the training after this step; the state is kept."""
        self._stopped = reason

    def resize(
        self,
        batch_size: int,
        micro_batch_size: int,
        *,
        batch_factor: float,
        rate_factor: float,
        reason: str,
    ) -> None:
        """Continue with another batch size; the rest of the epoch is cut into batches of it."""
        self.state.batch_size = batch_size
        self.step.use(micro_batch_size)
        scale_optimizer(self.optimizer, batch_factor, rate_factor, self.scheduler)
        micro = self.step.micro_batch_size or 0
        self._on_event(Event("adapted", self.state.steps - 1, reason, micro))

    def evaluate(self) -> dict[str, float]:
        """Return the evaluation loss and the workload's metrics; restores the random states."""
        before = random_state(self.device)
        try:
            return evaluated(self.workload, self.step, self._on_evaluation_out_of_memory)
        finally:
            set_random_state(before, self.device)

    def micro_batches(self, most: int | None = None) -> Iterator[Part]:
        """Yield micro-batches of at most `most` examples, each example at most once, shuffled.

        What the model keeps in attributes is restored at the end; parts of another size than those
        of the training start as the model was built, since a hidden state has the size of a part.
        """
        now = ModuleAttributes(self.model)
        try:
            yield from self._micro_batches(most)
        finally:
            now.restore()

    def _micro_batches(self, most: int | None) -> Iterator[Part]:
        w, size = self.workload, self.step.micro_batch_size or 1
        if most is not None and size > most:
            step = math.lcm(self.plan.sizes.step, self.step.multiple)
            size = max(replace(self.plan.sizes, step=step).at_most(most), step)
        if size != self.step.micro_batch_size:
            self.attributes.restore_tensors()
        generator = torch.Generator().manual_seed(self.plan.seed + self.state.steps)
        drawn = epoch_order(w, self.plan.seed, self.state.epoch)
        shuffled = torch.randperm(len(drawn), generator=generator).tolist()
        order = list(dict.fromkeys(drawn[position] for position in shuffled))
        data: Any = w.data
        for start in range(0, len(order) - size + 1, size):
            batch = w.collate([data[index] for index in order[start : start + size]])
            if batch is None:
                continue
            here, count = to_device(batch, self.device), float(w.count(batch))
            if count:
                scale = self._plain.scaler.get_scale()  # keeps fp16's gradients from vanishing
                yield partial(self._plain.loss, self.model, here), size, count * scale

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint needs to continue at the next example."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self._plain.scaler.state_dict(),
            "elastic": self.step.state_dict(),
            "callbacks": self._callbacks.state_dict(),
            "state": vars(self.state) | {"loss_sum": float(self.state.loss_sum)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`.

        Raises:
            UsageError: if the optimizer or the schedule is another one.
        """
        self._check_same(state)
        resize_buffers(self.model, state["model"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._plain.scaler.load_state_dict(state["scaler"])
        self.step.load_state_dict(state["elastic"])
        self._callbacks.load_state_dict(state.get("callbacks", {}))
        self.state = TrainingState(**state["state"])
        self._schedule_steps = self._due_steps

    def _check_same(self, state: dict[str, Any]) -> None:
        saved, own = (s["param_groups"] for s in (state["optimizer"], self.optimizer.state_dict()))
        if len(saved) != len(own):
            raise UsageError(
                f"the checkpoint's optimizer has {len(saved)} parameter groups, the factory's "
                f"{len(own)}; groups that are added during the training cannot be resumed, so add "
                "them in the factory"
            )
        steps = (state["scheduler"] or {}).get("total_steps")
        planned = getattr(self.scheduler, "total_steps", None)
        if steps != planned:
            raise UsageError(
                f"the checkpoint's schedule is made for {steps} updates, this training's for "
                f"{planned}; resume with the epochs that it began with"
            )

    def _epoch(self) -> None:
        at, seed = self.state, self.plan.seed
        self._observers.begin_epoch()
        set_training(self.model, True)
        order = epoch_order(self.workload, seed, at.epoch)
        index = at.position // at.batch_size
        self._callbacks.on_epoch_start(at.epoch)
        while where := cuts(self.workload, len(order), at.batch_size, at.position):
            size = at.batch_size
            for batch, examples in batches(
                self.workload, order, where, self.processes, seed, at.epoch
            ):
                if self.processes.group is None and self._is_empty(batch):
                    self._skip(examples)
                    continue
                if not self._are_checked and batch is not None:
                    self._check_items(batch, examples)
                self._callbacks.on_step_start(batch, index)
                report = self.step(batch)
                self._count(report, examples)
                self._callbacks.on_step_end(batch, index, report.mean_loss)
                index += 1
                self._observers.step(self, report)
                if self._stopped:
                    return
                if at.batch_size != size:
                    break
        if not at.loss_count:
            raise UsageError(
                "every batch of the epoch is empty: the collate returned None, or count(batch) is 0"
            )
        loss = self.processes.mean(float(at.loss_sum) / at.loss_count)
        at.loss_sum, at.loss_count = 0.0, 0.0
        at.metrics = {"loss": loss} | self._observers.epoch_metrics(self)
        if isinstance(self.scheduler, ReduceLROnPlateau):  # as `_has_plateau`, for the type
            self.scheduler.step(at.metrics.get("evaluation_loss", loss))
        self._callbacks.on_epoch_end(at.epoch, at.metrics)
        at.epoch, at.position = at.epoch + 1, 0
        at.seconds += self._observers.seconds()
        self._observers.epoch(self)

    def _is_empty(self, batch: Any) -> bool:
        """Whether the collate left out all items, or nothing counts that the loss averages over.

        A mean over nothing would be NaN, and make the weights NaN.
        """
        return batch is None or not self.workload.count(batch)

    def _skip(self, examples: int) -> None:
        self.state.examples += examples
        self.state.position += examples

    def _count(self, report: StepReport, examples: int) -> None:
        at = self.state
        at.loss_sum = at.loss_sum + report.mean_loss * report.count  # does not wait for the device
        at.loss_count += report.count
        at.examples, at.position = at.examples + examples, at.position + examples
        at.steps += 1
        if self._steps_schedule:
            self._step_schedule()
        at.seconds += self._observers.seconds_of_step(at.steps)

    @property
    def _has_plateau(self) -> bool:
        """Whether the schedule waits for a metric to stop improving; it is stepped by epochs."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    @property
    def _steps_schedule(self) -> bool:
        """Whether the schedule is stepped here; otherwise `Elastic` steps it once per update."""
        return self.plan.schedule_by_examples or self.plan.schedule_epochs is not None

    def _step_schedule(self) -> None:
        """Step the schedule to its due step, never beyond its end, where some schedules raise."""
        if self.scheduler is None or self._has_plateau:
            return
        while self._schedule_steps < self._due_steps:
            self.scheduler.step()
            self._schedule_steps += 1

    @property
    def _due_steps(self) -> int:
        at = self.state
        due = at.examples // self.plan.batch_size if self.plan.schedule_by_examples else at.steps
        return max(min(due, self._scheduled - 1), 0)

    def _on_evaluation_out_of_memory(self, reason: str) -> None:
        size = self.step.micro_batch_size or 0
        self._on_event(Event("out_of_memory", self.state.steps, reason, size, "evaluation"))

    def _on_event(self, event: Event) -> None:
        self._observers.event(self, event)
