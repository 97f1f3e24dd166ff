"""One run of a study, in the process that is its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rightbatch._device import Device, is_out_of_memory
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._study.records import Ended, Point
from rightbatch._study.runs.plan import RunPlan


class TooLargeError(Exception):
    """A batch that the data set does not fill."""


class BrokenError(Exception):
    """The workload cannot be built; its cause is the workload's own error."""


class Teller:
    """What a run says to whoever started it."""

    def __init__(self, send: Callable[..., object]) -> None:
        self._send = send

    def points(self, points: list[Point]) -> None:
        self._send(event="points", points=[vars(point) for point in points])

    def happened(self, event: dict[str, Any]) -> None:
        self._send(event="happened", what=event)

    def ended(self, ended: Ended) -> None:
        self._send(event="ended", ended=vars(ended))


def run(factory: Any, plan: RunPlan, device: Device, limit: int, teller: Teller) -> Ended:
    """Train as the plan says; whatever becomes of it is the result, and no exception.

    `limit` is what the device may use, in bytes.

    Raises:
        UsageError, BrokenError: for what would be wrong in every run.
    """
    from rightbatch._study.runs.framework import by_framework
    from rightbatch._study.runs.watch import DivergedError

    train = by_framework if hasattr(factory, "train") else _by_loop
    facts: dict[str, Any] = {"device": device.name, "limit_bytes": limit}
    try:
        device.reset_peak()
        train(factory, plan, device.name, teller, facts)
        status, reason, error = "finished", facts.pop("reason"), None
    except (UsageError, BrokenError):
        raise
    except BaseException as raised:
        status, reason = "failed", f"{type(raised).__name__}: {raised}"
        if isinstance(raised, NothingFitsError):
            status, reason = "out_of_memory", str(raised)
        elif is_out_of_memory(raised):
            status = "out_of_memory"
        elif isinstance(raised, DivergedError):
            status, reason = "diverged", str(raised)
        elif isinstance(raised, TooLargeError):
            reason = str(raised)
        elif isinstance(raised, KeyboardInterrupt):
            status, reason = "stopped", str(raised) or "interrupted"
        facts.pop("reason", None)
        error = {"type": type(raised).__name__, "message": str(raised)[:2000]}
        error["traceback"] = _trace(raised)
    try:
        facts["peak_bytes"] = device.read().peak_bytes
    except Exception:  # a device that has failed may not answer any more
        facts["peak_bytes"] = None
    return Ended(status, reason, error=error, **facts)  # type: ignore[arg-type]


def _by_loop(
    factory: Any, plan: RunPlan, device: str, teller: Teller, facts: dict[str, Any]
) -> None:
    from rightbatch._study.runs.watch import Watch
    from rightbatch._training.distributed import opened
    from rightbatch._training.loop import Loop, built
    from rightbatch._training.scaling import scale_optimizer

    options = plan.options
    with (
        opened(device) as processes,
        built(lambda: _made(factory), plan.key.seed, processes) as workload,
    ):
        is_first = processes.is_first
        tell = teller.points if is_first else (lambda points: None)
        watch = Watch(
            plan.config.target,
            tell,
            seconds=options.budget_seconds,
            sharpness=options.sharpness,
        )
        loop = Loop(
            workload,
            batch_size=plan.key.batch_size,
            micro_batch_size=options.micro_batch_size,
            epochs=options.most_epochs,
            processes=processes,
            watch=watch,
            on_event=lambda event: teller.happened(event.to_dict()) if is_first else None,
            memory=options.memory_bytes,
            margin=options.margin,
            seed=plan.key.seed,
            progress=False,
        )
        if loop.examples < plan.key.batch_size:
            raise TooLargeError(
                f"the data set has {loop.examples} examples, fewer than a batch of "
                f"{plan.key.batch_size}: leave that size out of --batches"
            )
        betas = workload.optimizer.defaults.get("betas")
        batch_factor, rate = learning_rate_factors(plan, betas)
        scale_optimizer(workload.optimizer, batch_factor, rate, loop.scheduler)
        facts["learning_rate"] = float(workload.optimizer.param_groups[0]["lr"])
        try:
            loop.run()
            watch.flush()
        except BaseException:
            with suppress(Exception):  # what is still there when the device has failed
                watch.flush()
            raise
        finally:
            at = loop.standing
            facts |= {
                "steps": at.steps,
                "examples": at.examples,
                "seconds": at.seconds,
                "epochs": at.examples / loop.examples,
                "out_of_memory_events": at.out_of_memory_events,
                "metrics": dict(at.metrics) | watch.metrics,
                "micro_batch_size": loop.step.micro_batch_size,
            }
        facts["reason"] = watch.reason or f"{options.most_epochs} epochs"


def _made(factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:
        if isinstance(error, UsageError) or is_out_of_memory(error):
            raise
        raise BrokenError from error


def learning_rate_factors(plan: RunPlan, betas: tuple[float, float] | None) -> tuple[float, float]:
    """The factor on the batch size by which an optimizer's other settings change, and that on the
    learning rate.

    Raises:
        UsageError: if the rule needs a noise scale that is not known.
    """
    from rightbatch._training.scaling import scaling

    own, size, base = plan.key.learning_rate_factor, plan.key.batch_size, plan.config.base_batch
    if plan.options.rule == "none" or size == base:
        return 1.0, own
    if betas is None and plan.noise_scale is None:
        raise UsageError(
            f"how SGD's learning rate goes from batches of {base} to {size} depends on the noise "
            f"scale, which a run at {base} would show: add {base} to the batches, name the size "
            "that the learning rate was chosen for with --base-batch, give --noise-scale, or keep "
            "the rate with --rule none"
        )
    noise_scale = float("inf") if plan.noise_scale is None else plan.noise_scale
    found = scaling(betas, base, size, noise_scale)
    return found.batch_factor, found.learning_rate_factor * own


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-20000:]
    except MemoryError:
        return ""
