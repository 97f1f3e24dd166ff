"""What a study is made of: which runs are asked for, what they tell on their way, how they end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
"""Of every JSON document of a study: artifacts, and what the page asks for. Fields may be added."""

Axis = Literal["steps", "examples", "seconds", "epochs"]
AXES: tuple[Axis, ...] = get_args(Axis)

Status = Literal["running", "finished", "out_of_memory", "diverged", "failed", "stopped"]
"""`stopped`: ended from outside, by a pruner, Ctrl-C or a kill; only that one is begun anew."""


@dataclass(frozen=True, order=True)
class RunKey:
    """Which run: `learning_rate_factor` is on the rate that the rule gives to this batch size."""

    batch_size: int
    seed: int
    learning_rate_factor: float = 1.0

    def __str__(self) -> str:
        factor = self.learning_rate_factor
        rate = "" if factor == 1 else f", learning rate × {factor:g}"
        return f"batch {self.batch_size}, seed {self.seed}{rate}"

    @property
    def name(self) -> str:
        """For files and tags: the same for the same run, and for no other."""
        return f"batch_{self.batch_size}-seed_{self.seed}-rate_{self.learning_rate_factor!r}"


@dataclass(frozen=True)
class Target:
    """A metric with the value to reach: losses and errors from above, others from below."""

    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric}={self.value:g}"


@dataclass(frozen=True)
class Point:
    """Where a run stood after `steps` updates, and what was measured there.

    `seconds` are of training, without what was measured on the way. `at` is Unix time.
    """

    steps: int
    examples: float
    seconds: float
    epochs: float
    values: Mapping[str, float]
    at: float


@dataclass(frozen=True)
class Reached:
    """When a target was reached, between two measurements where the second was better."""

    steps: float
    examples: float
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a run ended; `error` is its type and message where it failed."""

    status: Status
    reason: str
    micro_batch_size: int | None = None
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    epochs: float = 0.0
    out_of_memory_events: int = 0
    learning_rate: float | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    device: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Curve:
    """A metric along a run: `values` at each place on each axis, all arrays of one length.

    An axis that a foreign logger did not record is NaN.
    """

    steps: NDArray[np.float64]
    examples: NDArray[np.float64]
    seconds: NDArray[np.float64]
    epochs: NDArray[np.float64]
    values: NDArray[np.float64]

    def along(self, axis: Axis) -> NDArray[np.float64]:
        """The places on an axis."""
        return getattr(self, axis)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Run:
    """A run as the store has it, ours or another logger's.

    `batch_size` and `seed` are None where nothing tells. `started` is Unix time. `parameters` are
    what it was logged with, `metrics` the last value of each, `curves` all values by metric.
    """

    id: str
    name: str
    batch_size: int | None
    seed: int | None
    status: Status
    reason: str = ""
    started: float = 0.0
    learning_rate: float | None = None
    learning_rate_factor: float = 1.0
    micro_batch_size: int | None = None
    steps: float = 0.0
    examples: float = 0.0
    seconds: float = 0.0
    epochs: float = 0.0
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    device: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> RunKey | None:
        """Which run of a study it is a try at; None where size or seed are not known."""
        if self.batch_size is None or self.seed is None:
            return None
        return RunKey(self.batch_size, self.seed, self.learning_rate_factor)

    @property
    def examples_per_second(self) -> float | None:
        """While it trained."""
        return self.examples / self.seconds if self.seconds > 0 and self.examples else None

    def to_dict(self) -> dict[str, Any]:
        """Without the curves."""
        plain = {name: value for name, value in vars(self).items() if name != "curves"}
        return plain | {
            "parameters": dict(self.parameters),
            "metrics": dict(self.metrics),
            "examples_per_second": self.examples_per_second,
        }
