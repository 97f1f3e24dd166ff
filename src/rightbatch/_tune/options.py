"""The options of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from rightbatch._errors import UsageError
from rightbatch._fit.result import FitResult
from rightbatch._training.targets import parse_target
from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._units import parse_bytes, parse_seconds
from rightbatch._workload.options import BaseBatch, Help, ProbeOptions, check_at_least_one

Objective = Literal["time", "cost", "energy"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ProbeOptions):
    """What `rightbatch.tune` takes in addition to the workload."""

    target: Annotated[str | None, Help("for example loss=0.45 or accuracy=0.9")] = None
    budget: Annotated[float | str, Help("time for the whole measurement")] = "3min"
    objective: Annotated[
        Objective, Help("what to minimize: time, cost (of all devices) or energy")
    ] = "time"
    base_batch: BaseBatch = DEFAULT_BATCH
    epochs: Annotated[
        int | None, Help("epochs of the planned training; default: until the target")
    ] = None
    verify: Annotated[bool, Help("also train short branches at sizes around the chosen one")] = (
        False
    )
    processes: Annotated[int, Help("number of devices that train together")] = 1
    bandwidth: Annotated[int | str, Help("bandwidth between the devices, per second")] = "10GB"
    largest: Annotated[
        FitResult | None, Help("the result of an earlier `fit`", python_only=True)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise UsageError(f"objective is one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        check_at_least_one(base_batch=self.base_batch, epochs=self.epochs, processes=self.processes)
        _ = self.budget_seconds, self.bandwidth_bytes, self.metric_target

    @property
    def budget_seconds(self) -> float:
        """`budget` in seconds."""
        return parse_seconds(self.budget)

    @property
    def bandwidth_bytes(self) -> int:
        """`bandwidth` in bytes per second."""
        return parse_bytes(self.bandwidth)

    @property
    def metric_target(self) -> tuple[str, float] | None:
        """`target` as a metric and its value."""
        return None if self.target is None else parse_target(self.target)
