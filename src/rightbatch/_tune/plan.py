"""A plan: the size to train at, with the measurements and the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rightbatch._fit.result import FitResult
from rightbatch._noise import NoiseEstimate, NoiseWindow
from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._tune.advice import Advice
from rightbatch._tune.decision import Expected
from rightbatch._units import format_seconds
from rightbatch._workload.notebook import ShownInNotebooks
from rightbatch._workload.workload import StepSeconds


@dataclass(frozen=True)
class Branch:
    """A short training at `batch_size` from the end of the pilot: its final loss and duration."""

    batch_size: int
    loss: float
    seconds: float
    examples: int


@dataclass(frozen=True)
class Plan(ShownInNotebooks):
    """The size to train at, and why.

    Each update has `batch_size` examples, in `accumulation` micro-batches of `micro_batch_size` on
    each device. `learning_rate_factor` multiplies the rate chosen for `base_batch`; `beta2` and
    `epsilon_factor` are for Adam and its variants. `expected` has every size that was compared,
    `branches` the trainings of `verify`, `command` is the command to train with, if the training is
    one. `steps_per_epoch` is None for data without a length. `samples` are the raw step times by
    micro-batch size, `seen` the gradient statistics at the weights and at their average: the
    decision can be repeated from them.
    """

    batch_size: int
    micro_batch_size: int
    accumulation: int
    learning_rate_factor: float
    learning_rate_rule: str
    beta2: float | None
    epsilon_factor: float | None
    base_batch: int
    noise_scale: NoiseEstimate
    averaged_noise_scale: NoiseEstimate | None
    expected: tuple[Expected, ...]
    advice: tuple[Advice, ...]
    steps_per_epoch: int | None
    steps_in_all: int | None
    epochs: int | None
    largest: FitResult
    objective: str
    processes: int
    seconds: float
    reason: str
    branches: tuple[Branch, ...] = ()
    command: str | None = None
    samples: dict[int, tuple[StepSeconds, ...]] = field(default_factory=dict, repr=False)
    seen: NoiseWindow = field(default=NoiseWindow(), repr=False)

    def __str__(self) -> str:
        averaged = self.averaged_noise_scale
        parts = f", {self.accumulation} x {self.micro_batch_size}" if self.accumulation > 1 else ""
        rows = [
            f"  {'batch':>6}  {'examples/s':>10}  {'efficiency':>10}  time to target",
            *(_row(each, self) for each in self.expected),
        ]
        lines = [
            f"batch size {self.batch_size}{parts}: {self.reason}",
            f"{self.noise_scale}",
            *([f"at averaged weights: {averaged}"] if averaged else []),
            *rows,
            *(f"- {each}" for each in self.advice),
            *([f"run: {self.command}"] if self.command else []),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch tune --json`."""
        plain = (
            "batch_size micro_batch_size accumulation learning_rate_factor learning_rate_rule "
            "beta2 epsilon_factor base_batch steps_per_epoch steps_in_all epochs objective "
            "processes seconds reason command"
        )
        averaged = self.averaged_noise_scale
        return {name: getattr(self, name) for name in plain.split()} | {
            "noise_scale": self.noise_scale.to_dict(),
            "averaged_noise_scale": averaged.to_dict() if averaged else None,
            "throughput": [
                {
                    "batch_size": each.batch_size,
                    "examples_per_second": each.examples_per_second,
                    "low": each.examples_per_second_low,
                    "high": each.examples_per_second_high,
                }
                for each in self.expected
            ],
            "expected": [each.to_dict() for each in self.expected],
            "advice": [each.to_dict() for each in self.advice],
            "branches": [dict(vars(each)) for each in self.branches],
            "largest": self.largest.to_dict(),
            "samples": {
                str(size): [vars(step) for step in steps] for size, steps in self.samples.items()
            },
            "observations": [list(pair) for pair in self.seen.at_weights],
            "observations_at_average": [list(pair) for pair in self.seen.at_average],
        }

    def plot(self) -> Any:
        """Return a plotly figure: throughput, efficiency and their product over the batch size.

        Raises:
            MissingExtraError: without plotly.
        """
        from rightbatch._tune.plot import plot_plan

        return plot_plan(
            self.expected,
            chosen=self.batch_size,
            largest=self.largest.batch_size,
            noise_scale=self.noise_scale,
        )


def _row(each: Expected, plan: Plan) -> str:
    marks = [
        mark
        for size, mark in (
            (plan.batch_size, "chosen"),
            (DEFAULT_BATCH, "default"),
            (plan.largest.batch_size, "largest tried"),
        )
        if size == each.batch_size
    ]
    seconds = f", {format_seconds(each.seconds)}" if each.seconds is not None else ""
    return (
        f"  {each.batch_size:>6}  {each.examples_per_second:>10.4g}  {each.efficiency:>10.0%}  "
        f"{each.relative_time:.2f} x ({each.low:.2f} to {each.high:.2f}){seconds}"
        + (f"  {', '.join(marks)}" if marks else "")
    )
