"""What a probe found; stored raw, so that every decision can be recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rightbatch._errors import RightbatchError, UsageError, WorkloadError

Outcome = Literal["ok", "out_of_memory", "killed", "failed"]


@dataclass(frozen=True)
class Failure:
    """An error in the probe's process: its type, its message, its own traceback."""

    type: str
    message: str
    traceback: str = ""

    def as_error(self, what: str, measured: dict[str, Any] | None = None) -> RightbatchError:
        """The error that a verb raises: wrong use stays that, the rest is the workload's own.

        `what` says what failed, `measured` has the fields of a result that exist without an answer.
        """
        if self.type in ("UsageError", "MissingExtraError"):
            return UsageError(self.message)
        return WorkloadError(
            f"{what}: {self.type}: {self.message}",
            error_type=self.type,
            error_message=self.message,
            traceback=self.traceback,
            measured=measured,
        )


@dataclass(frozen=True)
class Probe:
    """One size that was run.

    `outcome` is `ok`, `out_of_memory` (an error that says so), `killed` (the process ended without
    a word, as the kernel ends it when memory runs out) or `failed` (an error that is not memory).
    `peak_bytes`, `charged_bytes` and `live_bytes` are those of `rightbatch._device.Reading`;
    after a failure they are None. `growing_bytes` is what the second half of the `steps` added to
    the charge; as much again is expected of twice as many. A run that is not `whole` ended early,
    since it left room for a larger size. `seconds` is the wall time of all steps, `step_seconds`
    that of the last training step (of the last evaluation, for inference). `process` counts the
    processes; probes of one process ran one after the other.
    """

    batch_size: int
    outcome: Outcome
    seconds: float
    process: int
    peak_bytes: int | None = None
    charged_bytes: int | None = None
    growing_bytes: int = 0
    steps: int | None = None
    whole: bool = True
    live_bytes: int | None = None
    step_seconds: float | None = None
    evaluation_batch_size: int | None = None
    detail: Mapping[str, int] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def is_ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def needed_bytes(self) -> int:
        """What the steps themselves needed: tensors where the device knows, else the peak."""
        return int(self.live_bytes if self.live_bytes is not None else self.peak_bytes or 0)

    @property
    def claimed_bytes(self) -> int:
        """What a size must be granted: its charge, and what twice as many steps would add."""
        return (self.charged_bytes or 0) + self.growing_bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
