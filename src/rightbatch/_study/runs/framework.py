"""A run of a study through a framework's own trainer, which makes its updates itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from rightbatch._device import is_out_of_memory
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._study.records import Target
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.training import (
    BrokenError,
    Teller,
    TooLargeError,
    learning_rate_factors,
)
from rightbatch._study.runs.watch import DivergedError, Watch
from rightbatch._training.loop import Standing

Betas = tuple[float, float] | None
"""Of Adam and its kin; None for SGD."""


class FrameworkLoop(Protocol):
    """A framework's training, which a `Watch` looks at as at a `Loop`.

    An integration's factory makes one by `loop(batch_size=, micro_batch_size=, epochs=, device=,
    seed=, settings=, factors=, watch=, on_event=)`. `factors(betas)` are those on the batch size
    and on the learning rate, `micro_batch_size` None leaves batches whole until memory runs out.
    `watch` is told of every update and epoch; where it is over, the training ends.
    """

    standing: Standing
    learning_rate: float | None

    @property
    def examples(self) -> int:
        """Of the data set; 0 before it is known."""

    @property
    def micro_batch_size(self) -> int | None: ...

    @property
    def model(self) -> nn.Module: ...

    def run(self) -> Standing: ...


def by_framework(
    factory: Any, plan: RunPlan, device: str, teller: Teller, facts: dict[str, Any]
) -> None:
    """Train as the plan says, and write into `facts` what becomes of it.

    Raises:
        UsageError: for what a framework's trainer cannot do.
        BrokenError: for what fails before the training begins, and not for want of memory.
        TooLargeError: if the data set does not fill a batch.
        DivergedError: if the training diverged.
    """
    _check(factory, plan)
    options, target = plan.options, plan.config.target
    if target is not None:
        target = named_as_logged(factory, target)
    watch = FrameworkWatch(target, teller.points, seconds=options.budget_seconds)
    micro_batch = options.micro_batch_size
    loop: FrameworkLoop = factory.loop(
        batch_size=plan.key.batch_size,
        micro_batch_size=None if micro_batch == "auto" else micro_batch,
        epochs=options.most_epochs,
        device=device,
        seed=plan.key.seed,
        settings=options.settings or {},
        factors=lambda betas: factors(plan, betas),
        watch=watch,
        on_event=lambda event: teller.happened(event.to_dict()),
    )
    try:
        loop.run()
    except (UsageError, NothingFitsError, TooLargeError):
        raise
    except Exception as error:
        if loop.examples or is_out_of_memory(error):
            raise
        raise BrokenError from error
    finally:
        with suppress(Exception):  # what is in flight when the device has failed
            watch.flush()
        at = loop.standing
        facts |= {
            "steps": at.steps,
            "examples": at.examples,
            "seconds": at.seconds,
            "epochs": at.examples / loop.examples if loop.examples else 0.0,
            "out_of_memory_events": at.out_of_memory_events,
            "metrics": dict(at.metrics) | watch.metrics,
            "micro_batch_size": loop.micro_batch_size,
            "learning_rate": loop.learning_rate,
        }
    facts["reason"] = watch.reason or f"{options.most_epochs} epochs"


def named_as_logged(factory: Any, target: Target) -> Target:
    """With the name that its metric has in the store, where the framework has short ones, too."""
    name: Callable[[str], str] = getattr(factory, "metric_name", str)
    return replace(target, metric=name(target.metric))


def factors(plan: RunPlan, betas: Betas) -> tuple[float, float]:
    """The factor on the batch size, and that on the learning rate.

    Where no noise scale is known, SGD's rate is linear in the batch size (Goyal et al. 2017, arXiv
    1706.02677): the size that a framework's rate is for need not be among those compared.
    """
    if plan.noise_scale is None:
        plan = replace(plan, noise_scale=math.inf)
    return learning_rate_factors(plan, betas)


class FrameworkWatch(Watch):
    """A `Watch` that knows a framework's losses less well than a workload's."""

    def after_step(self, loop: Any, report: Any) -> None:
        self._model: nn.Module = loop.model
        super().after_step(loop, report)
        self._check_target()

    def after_epoch(self, loop: Any) -> Mapping[str, float]:
        found = super().after_epoch(loop)
        self._check_target()
        return found

    def _check_target(self) -> None:
        target = self._target
        if target is None or not self.metrics or target.metric in (*self.metrics, "loss"):
            return
        raise UsageError(
            f"there is no metric {target.metric!r}; the training has "
            f"{', '.join(sorted(self.metrics))} and loss"
        )

    def _check(self, losses: list[float]) -> None:
        """Only what is no number has diverged. A detector's loss rises from next to nothing as its
        objects are found, and where gradients overflow a scaler leaves the update out.
        """
        bad = [loss for loss in losses if not math.isfinite(loss)]
        if bad and not all(p.isfinite().all() for p in self._model.parameters()):
            raise DivergedError(f"the loss became {bad[0]}, and the weights with it")


def _check(factory: Any, plan: RunPlan) -> None:
    if not hasattr(factory, "loop"):
        raise UsageError("this framework's trainer cannot be studied yet; a Workload can")
    if plan.options.processes > 1:
        raise UsageError("a framework's trainer is studied in one process; leave --processes out")
    if plan.options.sharpness:
        raise UsageError("the sharpness is measured of a Workload; leave --sharpness out")
