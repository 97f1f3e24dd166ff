"""What a command prints: its result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


def print_result(result: Any, as_json: bool, stdout: TextIO | None = None) -> None:
    """A verb's result, as text or as its JSON document."""
    print(document(result.to_dict()) if as_json else result, file=stdout)


def document(fields: dict[str, Any]) -> str:
    """The text of a JSON document."""
    return json.dumps(fields, indent=2)


def say(text: str) -> None:
    """A message, on stderr."""
    print(f"rightbatch: {text}", file=sys.stderr, flush=True)


@contextmanager
def stdout_for_the_document(as_json: bool) -> Iterator[TextIO]:
    """With --json, what a framework prints goes to stderr, and only the document to stdout."""
    stdout = sys.stdout
    if not as_json:
        yield stdout
        return
    with redirect_stdout(sys.stderr):
        yield stdout
