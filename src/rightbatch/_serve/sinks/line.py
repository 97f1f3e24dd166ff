"""`Line`: what became of one frame, as Python and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._serve.models.results import json_default
from rightbatch._serve.redaction import describe_error


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one frame.

    `captured` is Unix time in seconds, `reason` why its batch had its size, `error` why there is no
    result.
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
        """One line of JSON, whatever the result is.

        NaN and infinity, which JSON does not have, become null. A result that it cannot hold is
        left out, and `error` says so: the frame has its line all the same.
        """
        try:
            text = json.dumps(self.to_dict(), default=json_default)
            try:
                return json.dumps(self.to_dict(), default=json_default, allow_nan=False)
            except ValueError:
                return json.dumps(json.loads(text, parse_constant=lambda _: None))
        except (TypeError, ValueError, RecursionError) as error:
            return replace(self, result=None, error=describe_error(error)).to_json()
