"""Where, when and with which versions the figures of a section were measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def provenance(*documents: dict[str, Any], packages: tuple[str, ...] = ("torch",)) -> str:
    """A sentence on dates, machines and versions. Parts of a document may differ in all of them."""
    runs = [about for document in documents for about in _abouts(document)]
    dates = sorted(about["date"][:10] for about in runs)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    machines = dict.fromkeys(_machine(about["machine"]) for about in runs)
    versions = dict.fromkeys(
        f"{package} {about['versions'][package]}"
        for package in packages
        for about in runs
        if package in about["versions"]
    )
    return f"Measured {when} on {' and '.join(machines)}, with {', '.join(versions)}.\n"


def _abouts(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was recorded with each part, or with the document as a whole."""
    parts = document.get("results", {})
    nested = [
        part["about"] for part in parts.values() if isinstance(part, dict) and "about" in part
    ]
    yield from nested or [document]


def _machine(machine: dict[str, Any]) -> str:
    cores = machine["cores"]
    return (
        f"{machine['processor']} ({cores} core{'' if cores == 1 else 's'}, "
        f"{machine['memory_bytes'] / 2**30:.1f} GiB, {machine['system'].split()[0]}, "
        f"Python {machine['python']})"
    )
