"""The table of `docs/serve-kinds.md`, which these tests hold to what is served and refused."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs" / "serve-kinds.md"


def documented(section: str) -> dict[str, str]:
    """Return the rows of a section: kind -> "served", or the message with which it is refused."""
    text = DOCS.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (served|refused) \|(.*)\|$", text, re.MULTILINE)
    assert rows, section
    found = {}
    for kind, outcome, note in rows:
        said = re.search(r"`(.+?)`", note)
        found[kind] = "served" if outcome == "served" else said[1] if said else ""
        assert found[kind] and "…" not in found[kind], kind
    return found
