"""Errors of steps that read values which tensors without memory do not have."""

from __future__ import annotations

from rightbatch._errors import UsageError


class UnknownValueError(RuntimeError):
    """A step reads what fake tensors do not know; `func` is the operator."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"{operator} reads an unknown value")
        self.func = operator


def cause(error: BaseException) -> str:
    """Return the operator that failed with fake tensors, or the error in one line."""
    operator = getattr(error, "func", None)
    text = f"{operator}" if operator is not None else f"{type(error).__name__}: {error}"
    return text.splitlines()[0][:200]


TOO_LARGE = (
    "the model is too large to be followed with real ones; run `rightbatch fit` on the device"
)
SHARDED = "a sharded step is not followed with real ones; predict it without sharding"


def as_refusal(error: Exception, why: str = TOO_LARGE) -> Exception:
    """Return what to raise if a step does not run on fake tensors, and must; `why` says why."""
    if getattr(error, "func", None) is None:
        return error  # the workload's own
    return UsageError(
        f"the step reads values that tensors without memory do not have ({cause(error)}), and {why}"
    )
