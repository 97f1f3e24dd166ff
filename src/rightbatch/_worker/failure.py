"""Errors in a worker process, as its parent receives them."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Literal

from rightbatch._errors import RightbatchError, UsageError, WorkloadError

Outcome = Literal["ok", "out_of_memory", "killed", "failed"]


@dataclass(frozen=True)
class Failure:
    """An error in a worker process: its type, message and traceback."""

    type: str
    message: str
    traceback: str = ""

    def as_error(self, what: str, measured: dict[str, Any] | None = None) -> RightbatchError:
        """Return the error that a verb raises: `UsageError` for wrong use, else `WorkloadError`.

        `what` says what failed; `measured` has the fields of a result that are known without an
        answer.
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


def failure(error: BaseException) -> dict[str, Any]:
    """Return `outcome` and the fields of a `Failure`, for a report of the worker."""
    from rightbatch._device import is_out_of_memory

    out_of_memory = is_out_of_memory(error)
    try:
        text = "".join(traceback.format_exception(error))
        message = " (".join([str(error), *getattr(error, "__notes__", ())])
        message += ")" * len(getattr(error, "__notes__", ()))
    except MemoryError:
        text, message = "", str(error)
    return {
        "outcome": "out_of_memory" if out_of_memory else "failed",
        "failure": {
            # The parent does not know the subclasses, such as one that is an AttributeError, too.
            "type": "UsageError" if isinstance(error, UsageError) else type(error).__name__,
            "message": message[:2000],
            "traceback": text[-20000:],
        },
    }
