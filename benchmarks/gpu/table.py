"""The results as a Markdown table: goal and found side by side, nothing judged."""

from __future__ import annotations

from typing import Any

_WIDTH = 160


def table(document: dict[str, Any]) -> str:
    """A section a part, in the order of the run."""
    text = f"# rightbatch on {document['gpu']}\n"
    for name, part in document["parts"].items():
        about = part["about"]
        where = ", ".join(f"{key} {about[key]}" for key in ("torch", "date") if key in about)
        text += f"\n## {name}: {part['what']}\n\n"
        text += f"{part['outcome']} after {part['seconds']:.0f} s of {part['limit_seconds']:.0f}"
        text += f" ({where})\n\n" if where else "\n\n"
        text += "| what | goal | found |\n|---|---|---|\n"
        for row in part["rows"]:
            text += f"| {_cell(row['what'])} | {_cell(row['goal'])} | {_cell(_found(row))} |\n"
    return text


def _found(row: dict[str, Any]) -> str:
    if row["skipped"]:
        return f"skipped: {row['skipped']}"
    if row["error"]:
        last = row["error"].strip().splitlines()[-1:]
        return f"failed: {(last or ['no message'])[0][:_WIDTH]}"
    return str(row["found"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
