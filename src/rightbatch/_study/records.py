"""The records of a study: keys of runs, the points that they log, how they end, their curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
"""Version of every JSON document of a study: artifacts and the page's. Fields may be added."""

Axis = Literal["steps", "examples", "seconds", "epochs"]
AXES: tuple[Axis, ...] = get_args(Axis)

Status = Literal["running", "finished", "out_of_memory", "diverged", "failed", "stopped"]
"""`stopped`: by the pruner, Ctrl-C or a kill; only a stopped run may be trained again."""


@dataclass(frozen=True, order=True)
class RunKey:
    """Identifies a run; `learning_rate_factor` multiplies the rule's rate for this batch size."""

    batch_size: int
    seed: int
    learning_rate_factor: float = 1.0

    def __str__(self) -> str:
        factor = self.learning_rate_factor
        rate = "" if factor == 1 else f", learning rate × {factor:g}"
        return f"batch {self.batch_size}, seed {self.seed}{rate}"

    @property
    def name(self) -> str:
        """The unique name for files and tags."""
        return f"batch_{self.batch_size}-seed_{self.seed}-rate_{self.learning_rate_factor!r}"


@dataclass(frozen=True)
class Target:
    """A metric and the value to reach: losses and errors from above, others from below."""

    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric}={self.value:g}"


@dataclass(frozen=True)
class Point:
    """The measurements of a run after `steps` updates.

    `seconds` are of training, without measurements and evaluations. `at` is Unix time.
    """

    steps: int
    examples: float
    seconds: float
    epochs: float
    values: Mapping[str, float]
    at: float


@dataclass(frozen=True)
class Crossing:
    """When a target was reached, interpolated between two measurements."""

    steps: float
    examples: float
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a run ended; `error` has `type`, `message` and `traceback` if it failed."""

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

    An axis that another logger did not record is NaN.
    """

    steps: NDArray[np.float64]
    examples: NDArray[np.float64]
    seconds: NDArray[np.float64]
    epochs: NDArray[np.float64]
    values: NDArray[np.float64]

    def along(self, axis: Axis) -> NDArray[np.float64]:
        """Return the values of an axis, one per value of the metric."""
        return getattr(self, axis)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Run:
    """A run as the store has it, of a study or of another logger.

    `batch_size` and `seed` are None if unknown. `started` is Unix time. `parameters` are the logged
    ones, `metrics` has the last value of each metric, `curves` all values by metric.
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
        """The run of a study that this is an attempt at; None if size or seed are unknown."""
        if self.batch_size is None or self.seed is None:
            return None
        return RunKey(self.batch_size, self.seed, self.learning_rate_factor)

    @property
    def examples_per_second(self) -> float | None:
        """The throughput of the training; None if unknown."""
        return self.examples / self.seconds if self.seconds > 0 and self.examples else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields without the curves."""
        plain = {name: value for name, value in vars(self).items() if name != "curves"}
        return plain | {
            "parameters": dict(self.parameters),
            "metrics": dict(self.metrics),
            "examples_per_second": self.examples_per_second,
        }
