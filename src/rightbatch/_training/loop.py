"""The training of a `Workload`: loader, schedule, evaluation, checkpoints, and what is written."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import release
from rightbatch._device.random_state import random_state, seed_all, set_random_state
from rightbatch._elastic import Elastic, Event, StepReport
from rightbatch._elastic.events import log_event
from rightbatch._errors import UsageError
from rightbatch._noise import NoiseWindow, Part, WeightAverage, measure_noise
from rightbatch._progress import Live
from rightbatch._train.growth import Growth
from rightbatch._training.checkpoint import Checkpoints
from rightbatch._training.distributed import Processes
from rightbatch._training.epoch import batches, cuts, order_of
from rightbatch._training.evaluation import evaluated
from rightbatch._training.scaling import scale_optimizer
from rightbatch._training.session import move_state
from rightbatch._units import format_seconds
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.factory import Factory
from rightbatch._workload.precision import autocast, scaler
from rightbatch._workload.workload import Workload


@dataclass
class Standing:
    """Where a training stands: at `position` in the order of `epoch`, with batches of
    `batch_size`."""

    batch_size: int
    epoch: int = 0
    position: int = 0
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    loss_sum: Tensor | float = 0.0
    loss_count: float = 0.0
    out_of_memory_events: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@contextmanager
def built(factory: Factory, seed: int, processes: Processes) -> Iterator[Workload]:
    """The workload, built from the seed; the caller's random states are as before in the end.

    Raises:
        UsageError: if the factory returns something else.
    """
    before = random_state(processes.device)
    try:
        seed_all(seed)
        workload = factory()
        if not isinstance(workload, Workload):
            raise UsageError(
                f"the factory returned {type(workload).__name__}, expected a rightbatch.Workload"
            )
        seed_all(seed + processes.rank)  # dropout is not the same in every process
        yield workload
    finally:
        set_random_state(before, processes.device)


class Watching(Protocol):
    """Who hears of every update, and evaluates; its time does not count as the training's."""

    @property
    def is_over(self) -> bool:
        """Whether the training is to end here."""

    def after_step(self, loop: Loop, report: StepReport) -> None: ...

    def after_epoch(self, loop: Loop) -> Mapping[str, float]:
        """The metrics of now."""


class Loop:
    """Trains a workload at one batch size, from the start or from its last checkpoint.

    Files in `out`: `last.pt` (where it stands), `model.pt` (weights at the end), `history.jsonl` (a
    line per epoch), `events.jsonl` (a line per change of the micro-batch, or of the batch where
    there is `growth`). Without `out` nothing is written; `watch` and `on_event` are told instead.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        batch_size: int,
        micro_batch_size: int | str,
        epochs: int,
        processes: Processes,
        out: Path | None = None,
        checkpoints: Checkpoints | None = None,
        growth: Growth | None = None,
        watch: Watching | None = None,
        on_event: Callable[[Event], object] = log_event,
        memory: int | str | None = None,
        margin: float = 0.05,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if isinstance(workload.data, IterableDataset) or not hasattr(workload.data, "__len__"):
            raise UsageError(
                "train takes a map-style data set, whose order it can resume; a stream is trained "
                "in your own loop, with rightbatch.Elastic as its step"
            )
        self.workload = workload
        self._batch_size, self._epochs = batch_size, epochs
        self._out, self._seed, self._progress = out, seed, progress
        self._checkpoints = checkpoints
        self.processes = processes
        self.device = processes.device
        self.examples = len(workload.data)
        if not self.examples:
            raise UsageError("the workload's data is empty")
        steps = len(cuts(workload, self.examples, batch_size)) * epochs
        self.model = workload.model.to(self.device)
        move_state(workload.optimizer, str(self.device))
        processes.share([*self.model.parameters(), *self.model.buffers()])
        schedule = workload.scheduler
        self.scheduler = schedule(workload.optimizer, steps) if schedule else None
        self._scaler = scaler(workload, self.device)
        self.standing = Standing(batch_size)
        self._growth = growth
        self._watch = watch
        self._on_event = on_event
        self._average = WeightAverage(self.model) if growth else None
        self.step = Elastic(
            self.model,
            workload.optimizer,
            self._loss,
            micro_batch_size=micro_batch_size,
            count=workload.count,
            split=workload.split,
            scaler=self._scaler,
            clip_norm=workload.clip_norm,
            scheduler=self.scheduler if growth is None else None,
            on_event=self._happened,
            group=processes.group,
            memory=memory,
            margin=margin,
        )
        self._stopped: int | None = None
        self._shown = 0.0

    def resume(self) -> None:
        """Go on from the last checkpoint.

        Raises:
            UsageError: if there is none, or it is of another training.
        """
        assert self._checkpoints is not None
        state = self._checkpoints.read_same(self._asked())
        self.model.load_state_dict(state["model"])
        self.workload.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._scaler.load_state_dict(state["scaler"])
        self.step.load_state_dict(state["elastic"])
        self.standing = Standing(**state["standing"])
        if self._growth is not None:
            self._growth.load_state_dict(state["growth"])
        if self.processes.is_first:  # what was written after the checkpoint comes again
            steps = self.standing.steps
            self._keep("history.jsonl", lambda line: line["steps"] <= steps)
            self._keep("events.jsonl", lambda line: line["step"] < steps)
        if self.processes.world_size == 1:
            set_random_state(state["random"], self.device)
        else:
            seed_all(self._seed + self.processes.rank + self.standing.steps)

    def run(self) -> Standing:
        """Train to the end.

        Raises:
            KeyboardInterrupt: if it was interrupted, with a checkpoint of where it stands.
        """
        at = self.standing
        if self._out is not None:
            self._out.mkdir(parents=True, exist_ok=True)
        if not at.steps:
            self._save()  # from here on there is something to resume
        total = self.examples * self._epochs
        with self._signals(), Live("train", enabled=self._progress, total=total) as live:
            while at.epoch < self._epochs and not self._is_over:
                self._epoch(live)
        return at

    def _epoch(self, live: Live) -> None:
        at = self.standing
        began = time.perf_counter() - at.epoch_seconds
        before = at.seconds - at.epoch_seconds
        self.model.train()
        order = order_of(self.examples, self._seed, at.epoch)
        while where := cuts(self.workload, self.examples, at.batch_size, at.position):
            for batch, examples in batches(
                self.workload, order, where, self.processes, self._seed, at.epoch
            ):
                report = self.step(batch)
                at.loss_sum = at.loss_sum + report.mean_loss * report.count  # waits for no device
                at.loss_count += report.count
                at.examples, at.position = at.examples + examples, at.position + examples
                at.steps += 1
                has_grown = self._growth is not None and self._grow(self._growth)
                now = time.perf_counter()
                if self._watch is not None and at.steps <= 2:
                    # The first step finds the micro-batch and starts the device: it counts as the
                    # second one.
                    began = now if at.steps == 1 else began - (now - began)
                at.epoch_seconds = now - began
                at.seconds = before + at.epoch_seconds
                if self._watch is not None:
                    told = time.perf_counter()
                    self._watch.after_step(self, report)
                    began += time.perf_counter() - told
                self._show(live, report)
                if self.processes.any(self._stopped is not None):
                    self._interrupted()
                if self._checkpoints is not None and self._checkpoints.is_due:
                    self._save()
                if self._is_over:
                    return
                if has_grown:
                    break
        loss = self.processes.mean(float(at.loss_sum) / at.loss_count)
        at.loss_sum, at.loss_count = 0.0, 0.0
        if self._watch is None:
            at.metrics = {"loss": loss} | evaluated(self.workload, self.step, self.ran_out)
        else:
            told = time.perf_counter()
            at.metrics = {"loss": loss} | dict(self._watch.after_epoch(self))
            began += time.perf_counter() - told
        at.epoch, at.position, at.epoch_seconds = at.epoch + 1, 0, 0.0
        at.seconds = before + time.perf_counter() - began
        if self.processes.is_first:
            self._append(
                "history.jsonl",
                {
                    "epoch": at.epoch,
                    "steps": at.steps,
                    "examples": at.examples,
                    "seconds": round(at.seconds, 3),
                    "batch_size": at.batch_size,
                    "micro_batch_size": self.step.micro_batch_size,
                    **at.metrics,
                },
            )
        if at.epoch == self._epochs:
            if self.processes.is_first and self._out is not None:
                torch.save(self.model.state_dict(), self._out / "model.pt")
            self._save()

    @property
    def population(self) -> int | None:
        """The examples that an epoch draws without repetition, if they are the same each time."""
        return self.examples

    @property
    def _is_over(self) -> bool:
        return self._watch is not None and self._watch.is_over

    def _grow(self, growth: Growth) -> bool:
        """Measure if it is time, and take a larger batch if that is faster; the schedule goes on by
        examples, as if batches had not changed."""
        at = self.standing
        assert self._average is not None
        self._average.update()
        if self.scheduler is not None:
            while self.scheduler.last_epoch < at.examples // self._batch_size:
                self.scheduler.step()
        seconds = growth.window_seconds(at.seconds)
        if seconds is None:
            return False
        before = random_state(self.device)
        try:
            seen = measure_noise(self.model, self._average, self.parts, self.examples, seconds)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            release(self.device)
            seen = NoiseWindow()
        finally:
            set_random_state(before, self.device)
        grown = growth.grown(seen, at.batch_size, at.seconds)
        if grown is None:
            return False
        at.batch_size = grown.batch_size
        self.step.use(grown.micro_batch_size)
        rule = grown.scaling
        scale_optimizer(
            self.workload.optimizer,
            rule.batch_factor,
            rule.learning_rate_factor,
            self.scheduler,
        )
        self._happened(
            Event("adapted", at.steps - 1, grown.reason, self.step.micro_batch_size or 0)
        )
        return True

    def parts(self, most: int | None = None) -> Iterator[Part]:
        """Micro-batches in an order of its own, so that no example is missed or seen twice; of
        `most` examples, if that is fewer than are trained at once."""
        w, size = self.workload, min(self.step.micro_batch_size or 1, most or sys.maxsize)
        generator = torch.Generator().manual_seed(self._seed + self.standing.steps)
        order = torch.randperm(self.examples, generator=generator).tolist()
        data: Any = w.data
        for start in range(0, len(order) - size + 1, size):
            batch = w.collate([data[index] for index in order[start : start + size]])
            here, count = to_device(batch, self.device), float(w.count(batch))
            if count:
                scale = self._scaler.get_scale()
                yield partial(self._loss, self.model, here), size, count * scale

    def _loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with autocast(self.workload, self.device):
            return self.workload.loss(model, batch)

    def ran_out(self, reason: str) -> None:
        """Memory ran out in an evaluation, and it was survived."""
        size = self.step.micro_batch_size or 0
        self._happened(Event("out_of_memory", self.standing.steps, reason, size, "evaluation"))

    def _asked(self) -> dict[str, Any]:
        return {
            "batch_size": self._batch_size,
            "adapt": self._growth is not None,
            "examples": self.examples,
            "seed": self._seed,
            "drop_last": self.workload.drop_last,
        }

    def _save(self) -> None:
        if not self.processes.is_first or self._checkpoints is None:
            return
        self._checkpoints.write(
            {
                "asked": self._asked(),
                "model": self.model.state_dict(),
                "optimizer": self.workload.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict() if self.scheduler else None,
                "scaler": self._scaler.state_dict(),
                "elastic": self.step.state_dict(),
                "growth": self._growth.state_dict() if self._growth else None,
                "standing": vars(self.standing) | {"loss_sum": float(self.standing.loss_sum)},
                "random": random_state(self.device),
            }
        )

    def _happened(self, event: Event) -> None:
        self.standing.out_of_memory_events += event.kind in ("out_of_memory", "rolled_back")
        if self.processes.is_first:
            self._on_event(event)
            self._append("events.jsonl", event.to_dict())

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self._out is not None:
            with (self._out / name).open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        assert self._out is not None
        path = self._out / name
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if wanted(json.loads(line))]
            path.write_text("".join(f"{line}\n" for line in lines))

    def _show(self, live: Live, report: StepReport) -> None:
        """Twice a second at most, since reading the loss waits for the device."""
        at = self.standing
        if not self._progress or at.seconds - self._shown < 0.5:
            return
        self._shown = at.seconds
        text = f"epoch {at.epoch + 1} of {self._epochs}, loss {report.loss:.4g}"
        if self._growth is not None:
            text += f", batches of {at.batch_size}"
        live.show(f"{text}, {at.examples / at.seconds:.3g} examples/s", at.examples)

    def _interrupted(self) -> None:
        self._save()
        at = self.standing
        raise KeyboardInterrupt(
            f"interrupted after {at.steps} updates ({format_seconds(at.seconds)}); "
            f"--resume goes on from there"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the training between two steps; a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self._stopped is not None:
                raise KeyboardInterrupt("interrupted at once; --resume goes on from the last save")
            self._stopped = number

        before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
