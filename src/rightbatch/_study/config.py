"""The configuration of a study, as its folder stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import RunKey, Target

_MAY_JOIN = ("batches", "seeds", "learning_rates")


@dataclass(frozen=True)
class StudyConfig:
    """A study of one workload: its options, and what they mean for this workload.

    `base_batch` is the batch size that the learning rate was chosen for; `target` names its metric
    as the store does.
    """

    workload: str
    options: StudyOptions
    base_batch: int
    target: Target | None = None

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that are compared."""
        return tuple(self.options.batches)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that each batch size is trained with."""
        return self.options.seed_numbers

    def to_dict(self) -> dict[str, Any]:
        """Return the stored JSON; when a study is continued, only `_MAY_JOIN` may differ."""
        options = self.options
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
        }

    def joined(self, before: Mapping[str, Any], where: str) -> StudyConfig:
        """Return this study with the batch sizes, seeds and learning rates stored in its folder.

        Raises:
            UsageError: if the folder `where` holds another study.
        """
        now = self.to_dict()
        differing = [
            key for key in now if key not in _MAY_JOIN and before.get(key, now[key]) != now[key]
        ]
        if differing:
            changes = ", ".join(f"{key} was {before[key]}, not {now[key]}" for key in differing)
            raise UsageError(f"{where} holds another study: {changes}; use another --out")
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
