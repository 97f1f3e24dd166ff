"""Output of commands: the result on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rightbatch._json import to_json


def print_result(result: Any, as_json: bool, stdout: TextIO | None = None) -> None:
    """Print a verb's result, as text or as its JSON document."""
    print(document(result.to_dict()) if as_json else result, file=stdout)


def document(fields: dict[str, Any]) -> str:
    """Return a JSON document as text, with null for NaN and infinity."""
    return to_json(fields, indent=2)


def say(text: str) -> None:
    """Print a message on stderr."""
    print(f"rightbatch: {text}", file=sys.stderr, flush=True)


@contextmanager
def stdout_for_the_document(as_json: bool) -> Iterator[TextIO]:
    """With --json, redirect what a framework prints to stderr; yields the real stdout."""
    stdout = sys.stdout
    if not as_json:
        yield stdout
        return
    with redirect_stdout(sys.stderr):
        yield stdout
