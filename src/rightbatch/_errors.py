"""Every error rightbatch raises on purpose, one tree, each with its exit code.

RightbatchError
├── UsageError            2  what was asked cannot be meant (also a ValueError)
│   └── MissingExtraError 2  an optional dependency is not installed (also an ImportError)
├── NothingFitsError      1  the answer is "no": not even the smallest batch fits
├── LateError             1  an item was refused or dropped: it would have missed its target
└── WorkloadError         3  the workload itself failed; its own traceback is attached
"""

from __future__ import annotations

from typing import Any, ClassVar


class RightbatchError(Exception):
    """Base of the tree; `except rightbatch.RightbatchError` catches all of it."""

    exit_code: ClassVar[int] = 2

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors are copied and sent to other processes; an exception would call `__init__` with
        its message alone, and the ones here take more than that."""
        return _made_again, (type(self), self.args), self.__dict__ or None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document that a verb prints instead of its result."""
        return {
            "batch_size": None,
            "reason": str(self),
            "error": {"type": type(self).__name__, "message": str(self)},
        }


def _made_again(kind: type[RightbatchError], args: tuple[Any, ...]) -> RightbatchError:
    return kind.__new__(kind, *args)


class UsageError(RightbatchError, ValueError):
    """Wrong use: the message says what was got, what was expected and the known options."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; `pip install 'rightbatch[{extra}]'` brings it"
        )


class LateError(RightbatchError):
    """An item that was refused or dropped, since it would have missed its latency target.

    `cause` is `late`, `refused`, `replaced`, `full` or `closing`; `retry_after` are the seconds
    after which, as predicted, there is room again.
    """

    exit_code = 1

    def __init__(self, message: str, *, cause: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after = retry_after


class _Verdict(RightbatchError):
    """An answer that is not a batch size, with what was measured on the way to it."""

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


class NothingFitsError(_Verdict):
    """Not even the smallest batch fits: what it needs, what there is, what would help."""

    exit_code = 1


class WorkloadError(_Verdict):
    """The workload failed for a reason of its own, which is not memory.

    `traceback` is the one of the workload, as printed in the process where it ran.
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
