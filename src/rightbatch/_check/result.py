"""The answer of `check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rightbatch._check.budget import Change
from rightbatch._units import format_bytes
from rightbatch._workload.notebook import ShownInNotebooks

_SHOWN = 10  # changed modules


@dataclass(frozen=True)
class CheckResult(ShownInNotebooks):
    """Whether a step at `batch_size` still fits, in bytes of tensors.

    `fits` is whether the GPU holds it, `within_budget` whether it fits and the peak exceeds the
    budget by no more than the tolerance. Without a budget `budget_bytes` is what the GPU has, and
    `changed` is empty. `changed` has the modules whose parameters, or activations for the backward
    pass, have another size than in the budget.
    """

    fits: bool
    within_budget: bool
    batch_size: int
    gpu: str | None
    peak_bytes: int
    budget_bytes: int
    largest_batch_size: int | None
    changed: tuple[Change, ...]
    reason: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown, rest = self.changed[:_SHOWN], self.changed[_SHOWN:]
        return "\n".join(
            [
                f"{self.verdict}: {self.reason}",
                *(f"  {_signed(change.bytes):>12}  {change.module}" for change in shown),
                *([f"  and {len(rest)} more modules"] if rest else []),
                *(f"note: {note}" for note in self.notes),
            ]
        )

    @property
    def verdict(self) -> str:
        """The answer in a few words."""
        if not self.fits:
            return "does not fit"
        return "within the budget" if self.within_budget else "over the budget"

    def to_markdown(self) -> str:
        """Return a comment for a pull request."""
        lines = [f"**Memory: {self.verdict}.** {self.reason}"]
        if self.changed:
            lines += ["", "| module | bytes |", "|---|---:|"]
            lines += [f"| `{c.module}` | {_signed(c.bytes)} |" for c in self.changed[:_SHOWN]]
            rest = len(self.changed) - _SHOWN
            lines += [f"| and {rest} more | |"] if rest > 0 else []
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch check --json`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"changed": [change._asdict() for change in self.changed]}

    def _table(self) -> Sequence[Sequence[object]]:
        return [("module", "bytes"), *((c.module, _signed(c.bytes)) for c in self.changed)]


def _signed(count: int) -> str:
    return f"{'+' if count > 0 else '-'}{format_bytes(abs(count))}"
