"""The numbers in the output of a command that runs: `--metric NAME=REGEX`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_LONGEST = 10_000  # characters of a line that are searched
_CHUNK = 2**20


class OutputNumbers:
    """Reads a file that grows, line by line, and searches each for the `patterns`.

    The number is the group `value` of a pattern, or its first group. A carriage return ends a line
    too, since progress bars write one.
    """

    def __init__(self, path: Path, patterns: Mapping[str, re.Pattern[str]]) -> None:
        self._path, self._patterns = path, patterns
        self._at, self._rest = 0, b""
        self.missing = set(patterns)
        """The names that no line has matched."""

        self.not_numbers: dict[str, list[str]] = {}
        """What a pattern has matched that is no number, such as `n/a`, by name."""

    def read(self, is_over: bool = False) -> Iterator[tuple[str, float]]:
        """Yield name and number of each match in the lines that are new."""
        if not self._patterns:
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            while chunk := file.read(_CHUNK):
                self._at += len(chunk)
                *lines, self._rest = re.split(rb"[\r\n]+", self._rest + chunk)
                for line in lines:
                    yield from self._search(line)
        if is_over and self._rest:
            line, self._rest = self._rest, b""
            yield from self._search(line)

    def _search(self, line: bytes) -> Iterator[tuple[str, float]]:
        text = line.decode(errors="replace")[:_LONGEST]
        for name, pattern in self._patterns.items():
            match = pattern.search(text)
            if match is None:
                continue
            found = match["value" if "value" in pattern.groupindex else 1]
            try:
                number = float(found)
            except (TypeError, ValueError):
                self.not_numbers.setdefault(name, []).append(str(found))
                continue
            self.missing.discard(name)
            yield name, number
