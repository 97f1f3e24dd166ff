"""The options of `study`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from rightbatch._errors import UsageError
from rightbatch._units import parse_seconds
from rightbatch._workload.options import (
    DeviceOptions,
    Help,
    batch_or_auto,
    check_at_least_one,
)

Rule = Literal["scaling", "none"]
RULES: tuple[Rule, ...] = get_args(Rule)
UNBOUNDED = 100
"""Epochs of a run that has only a target or a time."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(DeviceOptions):
    """What `rightbatch.study` takes in addition to the workload."""

    batches: Annotated[Sequence[int], Help("batch sizes, separated by commas: 8,16,32")]
    seeds: Annotated[int | Sequence[int], Help("number of seeds, or the seeds: 3, or 0,7,8")] = 3
    out: Annotated[
        str | Path, Help("folder of the study; an existing one is continued", "runs/study")
    ]
    epochs: Annotated[int | None, Help("maximum passes over the data")] = None
    target: Annotated[
        str | None, Help("metric value that ends a run, for example evaluation_loss=0.3")
    ] = None
    budget: Annotated[float | str | None, Help("maximum training time of each run")] = None
    steps: Annotated[int | None, Help("maximum updates of each run")] = None
    metrics: Annotated[
        Sequence[str],
        Help(
            "NAME=REGEX, for a command: a number in its output, the regex's group; repeatable",
            cli_default=None,
            cli_type=list[str] | None,
            cli_name="metric",
        ),
    ] = ()
    rule: Annotated[Rule, Help("how the learning rate changes with the batch size")] = "scaling"
    learning_rates: Annotated[
        Sequence[float], Help("factors on the rule's learning rate, each a run: 0.5,1,2")
    ] = (1.0,)
    search: Annotated[
        int, Help("trials of Optuna for each size's learning rate, before the seeds")
    ] = 0
    base_batch: Annotated[
        int | None, Help("the size that the learning rate was chosen for; default: 16")
    ] = None
    noise_scale: Annotated[
        float | None, Help("for SGD's rule; default: measured by a run at the base size")
    ] = None
    micro_batch: Annotated[int | str, Help("auto, or examples per forward pass")] = "auto"
    prune: Annotated[bool, Help("stop runs that are clearly behind the others (median rule)")] = (
        False
    )
    sharpness: Annotated[bool, Help("also measure the Hessian's largest eigenvalue")] = False
    processes: Annotated[int, Help("processes that train each run together (torchrun)")] = 1
    jobs: Annotated[int, Help("number of runs at a time")] = 1
    on: Annotated[str | None, Help("where runs train; ray: on a Ray cluster")] = None
    settings: Annotated[
        Mapping[str, Any] | None, Help("settings of the framework's trainer", python_only=True)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes("batches", self.batches)
        if self.base_batch is not None:
            _check_sizes("base_batch", (self.base_batch,))
        seeds = self.seed_numbers
        if not seeds or len(set(seeds)) < len(seeds):
            raise UsageError(f"seeds are at least one, without duplicates, not {list(seeds)}")
        if self.rule not in RULES:
            raise UsageError(f"rule is one of {', '.join(RULES)}, not {self.rule!r}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise UsageError(f"learning_rates are factors above 0, not {list(self.learning_rates)}")
        if self.search and len(self.learning_rates) > 1:
            raise UsageError("give either search or learning_rates, not both")
        if self.noise_scale is not None and not self.noise_scale > 0:
            raise UsageError(f"noise_scale is above 0, not {self.noise_scale}")
        check_at_least_one(epochs=self.epochs, steps=self.steps)
        check_at_least_one(processes=self.processes, jobs=self.jobs)
        _ = self.micro_batch_size, self.budget_seconds, self.metric_patterns

    def check_that_runs_end(self) -> None:
        """Check that something ends a run, for a training that does not end by itself.

        Raises:
            UsageError: if nothing does.
        """
        if all(end is None for end in (self.epochs, self.steps, self.target, self.budget)):
            raise UsageError(
                "nothing ends a run: give epochs, steps, a target such as loss=0.3, or a budget"
            )

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """`seeds` as numbers: 0, 1, … if only their count is given."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    @property
    def most_epochs(self) -> int:
        """Epochs after which a run ends in any case."""
        if self.epochs is not None:
            return self.epochs
        return UNBOUNDED if self.steps is None else max(UNBOUNDED, self.steps)

    @property
    def budget_seconds(self) -> float | None:
        """`budget` in seconds."""
        return None if self.budget is None else parse_seconds(self.budget)

    @property
    def metric_patterns(self) -> dict[str, re.Pattern[str]]:
        """`metrics` by name, each with a group for the number.

        Raises:
            UsageError: for what is not NAME=REGEX, or a regex without a group.
        """
        if isinstance(self.metrics, str):
            raise UsageError(f"metrics is a list, not the text {self.metrics!r}")
        found = {}
        for text in self.metrics:
            name, equals, pattern = text.partition("=")
            name = name.strip()
            if not (equals and name and pattern):
                raise UsageError(
                    f"{text!r} is not a metric; write NAME=REGEX, for example "
                    r"'accuracy=accuracy ([\d.]+)'"
                )
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise UsageError(f"the regex of metric {name} is not valid: {error}") from None
            if not compiled.groups:
                raise UsageError(
                    f"the regex of metric {name} has no group for the number: write "
                    rf"{pattern} ([\d.]+), or put its part for the number in parentheses"
                )
            if name in found:
                raise UsageError(f"there are two regexes for metric {name}")
            found[name] = compiled
        return found

    @property
    def micro_batch_size(self) -> int | Literal["auto"]:
        """`micro_batch` as a number, or `"auto"`."""
        return batch_or_auto("micro_batch", self.micro_batch)


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise UsageError(f"{name} are whole numbers of at least 1, not {list(sizes)}")
    if len(set(sizes)) < len(sizes):
        raise UsageError(f"{name} must not have duplicates; got {list(sizes)}")
