"""The configuration of a study, as its folder stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import RunKey, Target

_MAY_JOIN = ("batches", "seeds", "learning_rates")
_LATER = ("command", "steps", "metrics")
"""Left out where they are not set, as in the folders of versions that did not know them."""


@dataclass(frozen=True)
class StudyConfig:
    """A study of one workload: its options, and what they mean for this workload.

    `base_batch` is the batch size that the learning rate was chosen for; `target` names its metric
    as the store does. `command` is the command line of a workload that is one, without secrets.
    """

    workload: str
    options: StudyOptions
    base_batch: int
    target: Target | None = None
    command: str | None = None

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that are compared."""
        return tuple(self.options.batches)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that each batch size is trained with."""
        return self.options.seed_numbers

    @property
    def sets_learning_rates(self) -> bool:
        """Whether the study sets them: a command without `{learning_rate}` has its own."""
        return self.command is None or "{learning_rate}" in self.command

    def to_dict(self) -> dict[str, Any]:
        """Return the stored JSON; when a study is continued, only `_MAY_JOIN` may differ."""
        options = self.options
        later = {
            "command": self.command,
            "steps": options.steps,
            "metrics": list(options.metrics),
        }
        return {
            "workload": self.workload,
            "batches": list(self.batches),
            "seeds": list(self.seeds),
            "epochs": options.most_epochs,
            "target": None if self.target is None else vars(self.target),
            "seconds": options.budget_seconds,
            "rule": options.rule,
            "learning_rates": list(options.learning_rates),
            "base_batch": self.base_batch,
            "noise_scale": options.noise_scale,
            "micro_batch": options.micro_batch_size,
            "processes": options.processes,
            "memory": options.memory_bytes,
            "margin": options.margin,
            "settings": dict(options.settings or {}),
            **{name: value for name, value in later.items() if value},
        }

    def joined(self, before: Mapping[str, Any], where: str) -> StudyConfig:
        """Return this study with the batch sizes, seeds and learning rates stored in its folder.

        Raises:
            UsageError: if the folder `where` holds another study.
        """
        now = self.to_dict()
        differing = [
            key
            for key in now
            if key not in (*_MAY_JOIN, *_LATER) and before.get(key, now[key]) != now[key]
        ]
        differing += [key for key in _LATER if before.get(key) != now.get(key)]
        if differing:
            changes = ", ".join(
                f"{key} was {before.get(key)}, not {now.get(key)}" for key in differing
            )
            raise UsageError(f"{where} holds another study: {changes}; choose another --out")
        more: dict[str, Any] = {
            key: tuple(dict.fromkeys([*before[key], *now[key]])) for key in _MAY_JOIN
        }
        # The earlier runs' learning rates may be combined with a search for the next ones.
        return replace(self, options=replace(self.options, **more, search=0))

    def keys(self) -> list[RunKey]:
        """Return the runs in training order: one seed of each size first, for an early overview.

        The base size comes first, since its noise scale sets the learning rates of the others; then
        the sizes from the largest, which takes the fewest steps.
        """
        sizes = sorted(self.batches, key=lambda size: (size != self.base_batch, -size))
        return [
            RunKey(size, seed, rate)
            for seed in self.seeds
            for rate in self.options.learning_rates
            for size in sizes
        ]
