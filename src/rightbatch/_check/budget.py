"""A budget: the predicted memory of a step, by module, kept in a file of the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rightbatch._errors import UsageError
from rightbatch._json import to_json

_VERSION = 1


class Change(NamedTuple):
    """Bytes that a module has more than in the budget, or fewer."""

    module: str
    bytes: int


@dataclass(frozen=True)
class Budget:
    """The peak of a step at `batch_size`, in bytes.

    `gpu` is a GPU's name, or `memory` its bytes. `modules` are each module's parameters, and the
    activations that it keeps for the backward pass.
    """

    batch_size: int
    gpu: str | None
    memory: int | None
    inference: bool
    peak_bytes: int
    modules: Mapping[str, int]

    def changed(self, modules: Mapping[str, int]) -> tuple[Change, ...]:
        """Return what differs in `modules` from those of the budget, the largest growth first."""
        names = sorted({*self.modules, *modules})
        changes = (Change(n, modules.get(n, 0) - self.modules.get(n, 0)) for n in names)
        return tuple(sorted((c for c in changes if c.bytes), key=lambda c: -c.bytes))

    def write(self, path: Path) -> None:
        """Write the file; a line for each module, so that a difference can be read.

        Raises:
            UsageError: if it cannot be written.
        """
        text = to_json({"version": _VERSION} | asdict(self), indent=2)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"the budget cannot be written to {path}: {error.strerror}") from None


def read_budget(path: Path) -> Budget:
    """Read a budget's file.

    Raises:
        UsageError: if there is none, or it is none of a budget.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("version")
        if version != _VERSION:
            raise UsageError(f"{path} has version {version}; this rightbatch reads {_VERSION}")
        budget = Budget(**fields)
        numbers = [budget.batch_size, budget.peak_bytes, *budget.modules.values()]
        if not all(type(number) is int for number in numbers):
            raise TypeError
    except OSError as error:
        raise UsageError(f"the budget {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(
            f"{path} is no budget; `rightbatch check … --write {path}` writes one"
        ) from None
    return budget
