"""`Line`: the outcome of one frame, in Python and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rightbatch._json import to_json
from rightbatch._serve.models.results import json_default
from rightbatch._serve.redaction import describe_error


@dataclass(frozen=True, slots=True)
class Line:
    """The outcome of one frame.

    `captured` is Unix time in seconds, `reason` explains the size of the batch, `error` why there
    is no result.
    """

    source: str
    frame: int
    captured: float
    latency_ms: float | None
    batch_size: int | None
    result: Any
    reason: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "frame": self.frame,
            "captured": round(self.captured, 6),
            "latency_ms": None if self.latency_ms is None else round(self.latency_ms, 3),
            "batch_size": self.batch_size,
            "result": self.result,
            "reason": self.reason,
            "error": self.error,
        }

    def to_json(self) -> str:
        """Return one line of JSON, whatever the result is.

        NaN and infinity become null. A result that cannot be converted is replaced by null, with
        the reason in `error`.
        """
        try:
            return to_json(self.to_dict(), default=json_default)
        except (TypeError, ValueError, RecursionError) as error:
            return replace(self, result=None, error=describe_error(error)).to_json()
