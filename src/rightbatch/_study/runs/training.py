"""The training of one run of a study, in its worker process."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rightbatch._device import Device, is_out_of_memory
from rightbatch._elastic import Event
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._study.records import Ended, Point, Target
from rightbatch._study.runs.measurements import DivergedError, Measurements
from rightbatch._study.runs.plan import RunPlan
from rightbatch._training.distributed import opened
from rightbatch._training.protocol import (
    Ability,
    BatchTooLargeError,
    Betas,
    LoopPlan,
    Observer,
    Training,
    TrainingLoop,
    require,
)
from rightbatch._training.scaling import scaling


class BrokenError(Exception):
    """The training cannot be built; its cause is the workload's error."""


class Reporter:
    """Sends the events of a run to the process that started it."""

    def __init__(self, send: Callable[..., object]) -> None:
        self._send = send

    def points(self, points: list[Point]) -> None:
        """Send measured points."""
        self._send(event="points", points=[vars(point) for point in points])

    def happened(self, event: dict[str, Any]) -> None:
        """Send an event of `Elastic`."""
        self._send(event="happened", what=event)

    def ended(self, ended: Ended) -> None:
        """Send the end."""
        self._send(event="ended", ended=vars(ended))


def train_run(
    training: Training, plan: RunPlan, device: Device, limit: int, reporter: Reporter
) -> Ended:
    """Train by the plan, and return how the run ended, also after an error.

    `limit` is the memory that the device may use, in bytes.

    Raises:
        UsageError, BrokenError: for errors that every run would have.
    """
    facts: dict[str, Any] = {"device": device.name, "limit_bytes": limit}
    try:
        device.reset_peak()
        _train(training, plan, device.name, reporter, facts)
        status, reason, error = "finished", facts.pop("reason"), None
    except (UsageError, BrokenError):
        raise
    except BaseException as raised:
        status, reason = _status_of(raised)
        facts.pop("reason", None)
        error = {"type": type(raised).__name__, "message": str(raised)[:2000]}
        error["traceback"] = _trace(raised)
    try:
        facts["peak_bytes"] = device.read().peak_bytes
    except Exception:  # a device may fail to answer after an error
        facts["peak_bytes"] = None
    return Ended(status, reason, error=error, **facts)  # type: ignore[arg-type]


def _status_of(raised: BaseException) -> tuple[str, str]:
    if isinstance(raised, NothingFitsError):
        return "out_of_memory", str(raised)
    if is_out_of_memory(raised):
        return "out_of_memory", f"{type(raised).__name__}: {raised}"
    if isinstance(raised, DivergedError):
        return "diverged", str(raised)
    if isinstance(raised, BatchTooLargeError):
        return "failed", str(raised)
    if isinstance(raised, KeyboardInterrupt):
        return "stopped", str(raised) or "interrupted"
    return "failed", f"{type(raised).__name__}: {raised}"


def _train(
    training: Training, plan: RunPlan, device: str, reporter: Reporter, facts: dict[str, Any]
) -> None:
    """Train, and write the fields of `Ended` into `facts`."""
    check_abilities(training, plan)
    options, target = plan.options, plan.config.target
    if target is not None:
        target = Target(training.metric_name(target.metric), target.value)
    loop_plan = LoopPlan(
        batch_size=plan.key.batch_size,
        micro_batch_size=options.micro_batch_size,
        epochs=options.most_epochs,
        factors=lambda betas: factors_of(training, plan, betas),
        seed=plan.key.seed,
        memory=options.memory_bytes,
        margin=options.margin,
        settings=options.settings or {},
    )
    with opened(device) as processes:
        measurements = Measurements(
            target,
            reporter.points if processes.is_first else (lambda points: None),
            seconds=options.budget_seconds,
            steps=options.steps,
            sharpness=options.sharpness,
            loss_may_rise=training.loss_may_rise,
        )
        start = _Start()
        observers = [start, measurements, _Events(reporter)]
        loop: TrainingLoop | None = None
        try:
            with training.loop(loop_plan, processes, observers) as loop:
                loop.run()
                measurements.flush()  # the last losses may show that the training diverged
        except (UsageError, NothingFitsError, BatchTooLargeError):
            raise
        except Exception as error:
            if start.has_begun or is_out_of_memory(error):
                raise
            raise BrokenError from error
        finally:
            with suppress(Exception):  # after a failure the device may not answer
                measurements.flush()
            if loop is not None:
                facts |= _facts_of(loop, measurements)
        facts["reason"] = measurements.reason or f"{options.most_epochs} epochs"


def check_abilities(training: Training, plan: RunPlan) -> None:
    """Check that the training has the abilities that the options need.

    Raises:
        UsageError: if not; it names the ability.
    """
    require(training, Ability.LOOP, "study")
    if plan.options.processes > 1:
        require(training, Ability.DISTRIBUTE, "study --processes")
    if plan.options.sharpness:
        require(training, Ability.CURVATURE, "study --sharpness")
    if plan.options.settings:
        require(training, Ability.SETTINGS, "study with settings")


def _facts_of(loop: TrainingLoop, measurements: Measurements) -> dict[str, Any]:
    at = loop.state
    return {
        "steps": at.steps,
        "examples": at.examples,
        "seconds": at.seconds,
        "epochs": at.examples / loop.examples if loop.examples else 0.0,
        "out_of_memory_events": at.out_of_memory_events,
        "metrics": dict(at.metrics) | measurements.metrics,
        "micro_batch_size": loop.micro_batch_size,
        "learning_rate": loop.learning_rate,
    }


@dataclass
class _Start(Observer):
    """Checks before the first step that the data set fills a batch."""

    has_begun: bool = False

    def on_start(self, loop: TrainingLoop) -> None:
        self.has_begun = True
        size = loop.plan.batch_size
        if loop.examples < size:
            raise BatchTooLargeError(
                f"the data set has {loop.examples} examples, fewer than a batch of {size}: leave "
                "that size out of --batches"
            )


class _Events(Observer):
    """Reports events."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def on_event(self, loop: TrainingLoop, event: Event) -> None:
        self._reporter.happened(event.to_dict())


def factors_of(training: Training, plan: RunPlan, betas: Betas) -> tuple[float, float]:
    """Return the factors on batch size and learning rate for scaling the optimizer.

    For SGD without a known noise scale, a framework's rates are linear in the batch size (Goyal et
    al. 2017, arXiv 1706.02677), since their base size need not be one of the study's sizes.

    Raises:
        UsageError: if the rule needs a noise scale that is not known.
    """
    own, size, base = plan.key.learning_rate_factor, plan.key.batch_size, plan.config.base_batch
    if plan.options.rule == "none" or size == base:
        return 1.0, own
    is_known = plan.noise_scale is not None or training.base_batch is not None
    if betas is None and not is_known:
        raise UsageError(
            f"scaling the learning rate from batch size {base} to {size} depends on the noise "
            f"scale, which a run at {base} measures: add {base} to the batches, give the size that "
            "the learning rate was chosen for with --base-batch, give --noise-scale, or keep the "
            "rate with --rule none"
        )
    noise_scale = math.inf if plan.noise_scale is None else plan.noise_scale
    found = scaling(betas, base, size, noise_scale)
    return found.batch_factor, found.learning_rate_factor * own


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-20000:]
    except MemoryError:
        return ""
