"""The code and the commands that README.md and docs/*.md show, for tests that run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(rightbatch [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, and its text."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str | None:
        """The file that it is, where its first line says one: `# train.py`."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found and found[1]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and all pages of docs."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    found = [
        Block(path, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in _FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def files(path: Path) -> dict[str, str]:
    """The Python files that a page shows whole, by name."""
    return {block.name: block.text for block in blocks(path, "python") if block.name}


def commands(path: Path) -> list[list[str]]:
    """The arguments of every `rightbatch` command that a page shows in a console."""
    return _arguments(
        line.removeprefix("$ ")
        for block in blocks(path, "console")
        for line in block.text.splitlines()
        if line.startswith("$ ")
    )


def mentions(path: Path) -> list[list[str]]:
    """The same of commands in the text, which may leave out what does not matter there."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    return _arguments(" ".join(match[1].split()) for match in _SPAN.finditer(text))


def _arguments(lines: Iterable[str]) -> list[list[str]]:
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["rightbatch"]]
