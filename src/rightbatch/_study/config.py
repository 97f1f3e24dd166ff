"""What a study is asked for, checked, and held against what its folder holds already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._study.records import RunKey, Target

RULES = ("scaling", "none")
_MAY_JOIN = ("batches", "seeds", "learning_rates")
UNBOUNDED = 100
"""Epochs after which a run ends that was only given a target or a time."""


@dataclass(frozen=True)
class Asked:
    """Which runs, and how each is trained; the fields are those of `rightbatch.study`."""

    workload: str
    batches: tuple[int, ...]
    seeds: tuple[int, ...]
    epochs: int
    target: Target | None = None
    seconds: float | None = None
    rule: str = "scaling"
    learning_rates: tuple[float, ...] = (1.0,)
    base_batch: int = 16
    noise_scale: float | None = None
    micro_batch: int | str = "auto"
    processes: int = 1
    memory: int | None = None
    margin: float = 0.05
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_sizes("batches", self.batches)
        _check_sizes("base_batch", (self.base_batch,))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds are at least one, each once, not {self.seeds}")
        if self.epochs < 1:
            raise UsageError(f"epochs is at least 1, not {self.epochs}")
        if self.rule not in RULES:
            raise UsageError(f"rule is one of {', '.join(RULES)}, not {self.rule!r}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise UsageError(f"learning_rates are factors above 0, not {list(self.learning_rates)}")
        if self.noise_scale is not None and not self.noise_scale > 0:
            raise UsageError(f"noise_scale is above 0, not {self.noise_scale}")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"the time of a run is above 0 s, not {self.seconds}")
        if self.processes < 1:
            raise UsageError(f"processes is at least 1, not {self.processes}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        target = None if self.target is None else vars(self.target)
        return vars(self) | {
            "batches": list(self.batches),
            "seeds": list(self.seeds),
            "learning_rates": list(self.learning_rates),
            "target": target,
            "settings": dict(self.settings or {}),
        }

    def joined(self, before: Mapping[str, Any], where: str) -> Asked:
        """With the sizes, seeds and learning rates of the same study from before.

        Raises:
            UsageError: if what was asked before is another study.
        """
        now = self.to_dict()
        differing = [
            key for key in now if key not in _MAY_JOIN and before.get(key, now[key]) != now[key]
        ]
        if differing:
            said = ", ".join(f"{key} was {before[key]}, not {now[key]}" for key in differing)
            raise UsageError(f"{where} holds another study: {said}; take another --out")
        more: dict[str, Any] = {
            key: tuple(dict.fromkeys([*before[key], *now[key]])) for key in _MAY_JOIN
        }
        return replace(self, **more)

    def keys(self) -> list[RunKey]:
        """One seed of every size first, so that the whole is seen early.

        Of the sizes the one that the learning rate was chosen for comes first, whose noise scale
        sets that of the others, and then the largest, which take the fewest steps.
        """
        sizes = sorted(self.batches, key=lambda size: (size != self.base_batch, -size))
        return [
            RunKey(size, seed, rate)
            for seed in self.seeds
            for rate in self.learning_rates
            for size in sizes
        ]


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise UsageError(f"{name} are whole numbers of at least 1, not {list(sizes)}")
    if len(set(sizes)) < len(sizes):
        raise UsageError(f"{name} are each named once, not {list(sizes)}")
