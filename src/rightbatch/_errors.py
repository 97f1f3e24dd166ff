"""The exceptions of rightbatch, one tree, with the exit code of each.

RightbatchError
├── UsageError            2  invalid arguments or an unsupported combination (also a ValueError)
│   └── MissingExtraError 2  an optional dependency is not installed (also an ImportError)
├── NothingFitsError      1  the answer is "no": not even the smallest batch fits
├── LateError             1  an item was rejected or dropped: it would have missed its target
└── WorkloadError         3  the workload raised an error of its own; its traceback is attached
"""

from __future__ import annotations

from traceback import format_exc
from typing import Any, ClassVar


class RightbatchError(Exception):
    """Base class; `except rightbatch.RightbatchError` catches every error of rightbatch."""

    exit_code: ClassVar[int] = 2

    def __reduce__(self) -> tuple[Any, ...]:
        """Support copying and pickling.

        By default an exception is rebuilt by calling `__init__` with its message alone; the
        subclasses here require more arguments.
        """
        return _rebuild, (type(self), self.args), self.__dict__ or None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document that a verb prints instead of its result."""
        return {
            "batch_size": None,
            "reason": str(self),
            "error": {"type": type(self).__name__, "message": str(self)},
        }


def _rebuild(kind: type[RightbatchError], args: tuple[Any, ...]) -> RightbatchError:
    return kind.__new__(kind, *args)


class UsageError(RightbatchError, ValueError):
    """Wrong use: the message has the value, what was expected and the valid options."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; `pip install 'rightbatch[{extra}]'` installs it"
        )


class LateError(RightbatchError):
    """An item was rejected or dropped because it would have missed its latency target.

    `cause` is `late`, `refused`, `replaced`, `full` or `closing`; `retry_after` is the predicted
    time until there is room again, in seconds.
    """

    exit_code = 1

    def __init__(self, message: str, *, cause: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after = retry_after


class _NoBatchSizeError(RightbatchError):
    """The verb ends without a batch size; `measured` holds the JSON fields found so far."""

    def __init__(
        self,
        reason: str,
        *,
        error_type: str,
        error_message: str,
        measured: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error_type = error_type
        self.error_message = error_message
        self.measured = measured or {}

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.measured,
            "batch_size": None,
            "reason": self.reason,
            "error": {"type": self.error_type, "message": self.error_message},
        }


class NothingFitsError(_NoBatchSizeError):
    """Not even the smallest batch fits; the message has the bytes needed and the limit."""

    exit_code = 1


class WorkloadError(_NoBatchSizeError):
    """The workload failed with an error other than out-of-memory.

    `traceback` is the traceback printed in the process where the workload ran.
    """

    exit_code = 3

    def __init__(
        self,
        reason: str,
        *,
        error_type: str,
        error_message: str,
        traceback: str = "",
        measured: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            reason, error_type=error_type, error_message=error_message, measured=measured
        )
        self.traceback = traceback

    @classmethod
    def of(cls, error: Exception, reason: str) -> WorkloadError:
        """Return the error of a workload that raised `error`, which is being handled."""
        return cls(
            reason,
            error_type=type(error).__name__,
            error_message=str(error),
            traceback=format_exc(),
        )
