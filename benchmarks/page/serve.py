"""`serve`: rates in time beside other servers, the scheduler, the engine, faults, a long run."""

from __future__ import annotations

from typing import Any

from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance
from benchmarks.serve import engine, faults, hostile, soak, table, virtual

_PACKAGES = ("onnxruntime", "av", "ultralytics")


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the parts, each with what it says about its goals."""
    peers = stored["serve_peers"]
    versions = ", ".join(f"{name} {version}" for name, version in peers["about"]["peers"].items())
    parts = [
        f"### A real model, beside other servers\n\n{_below(table.table(peers))}",
        "The other servers and the fixed sizes have the best setting of a grid: batch size and "
        f"wait in brackets. A slow spell of the machine ends a search. Versions: {versions}.\n",
        _goals(peers["cells"]),
        provenance(peers["about"], packages=_PACKAGES),
        _part("The scheduler on a virtual clock", virtual.table(stored["serve_virtual"])),
        provenance(stored["serve_virtual"]),
        _part("Cost of the engine", engine.table(stored["serve_engine"])),
        provenance(stored["serve_engine"]["about"]),
        _part("Cameras that fail", faults.table(stored["serve_faults"])),
        "Each fault is another camera's; the others must not notice it.\n",
        provenance(stored["serve_faults"], packages=_PACKAGES),
        _part("A model that becomes slow", hostile.table(stored["serve_hostile"]["results"])),
        provenance(stored["serve_hostile"], packages=("rightbatch",)),
        _part("A long run", soak.table(stored["serve_soak"])),
        provenance(stored["serve_soak"]["about"], packages=_PACKAGES),
    ]
    return "\n".join(parts)


def _part(title: str, text: str) -> str:
    return f"### {title}\n\n{_below(text)}"


def _below(text: str) -> str:
    """A benchmark's own text without its title, and with its headings below a part's."""
    lines = text.strip("\n").splitlines()
    if lines[0].startswith("# "):
        lines = lines[2:]
    return "\n".join("##" + line if line.startswith("## ") else line for line in lines) + "\n"


def _goals(cells: list[dict[str, Any]]) -> str:
    """rightbatch over the best of the others, for each way, load and target."""
    ratios: dict[str, float] = {}
    for mine in cells:
        if mine["system"] != "rightbatch":
            continue
        key = (mine["http"], mine["kind"], mine["target_ms"])
        others = [
            cell["frames_per_second"]
            for cell in cells
            if (cell["http"], cell["kind"], cell["target_ms"]) == key and cell is not mine
        ]
        where = "HTTP" if mine["http"] else "one process"
        name = f"{where} {mine['kind']} {mine['target_ms']:g} ms"
        ratios[name] = mine["frames_per_second"] / max(others)
    at_100 = {
        name: value
        for name, value in ratios.items()
        if name.endswith(" 100 ms") and name.startswith("HTTP")
    }
    show = "{:.2f}".format
    return goals(
        Goal("at least 0.98 of the best other", ratios, lambda value: value >= 0.98, show),
        Goal(
            "through HTTP at 100 ms, 1.2 times the best other",
            at_100,
            lambda value: value >= 1.2,
            show,
        ),
    )
