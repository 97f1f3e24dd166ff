"""What `real_model` found, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.serve.peers.systems import Config

_WITHIN = 0.98  # of the best counts as first
_KINDS = {"poisson": "Poisson", "cameras": "cameras"}


def table(found: dict[str, Any]) -> str:
    cells = found["cells"]
    columns = list(dict.fromkeys((cell["kind"], cell["target_ms"]) for cell in cells))
    parts = [
        "# Serving a real model\n\n"
        f"YOLO26n at 320 pixels on ONNX Runtime with {found['threads']} threads: the highest "
        f"frame rate with {found['share']:.0%} within the target. Open loads of "
        f"{found['plan']['seconds']:g} s; latency counts from the scheduled moment; each rate held "
        "in two runs with different arrivals. A camera sends about 10 frames per second; their "
        "number makes up the rate.\n",
        _service(found["service"]),
    ]
    for title, http in (("Through HTTP", True), ("In one process", False)):
        chosen = [cell for cell in cells if cell["http"] == http]
        if chosen:
            parts += [f"## {title}\n", _rates(chosen, columns), _verdicts(chosen, columns)]
    parts += [
        "<details><summary>The runs that confirmed these rates</summary>\n",
        _details(cells),
        "</details>\n",
    ]
    return "\n".join(parts)


def _service(measured: list[dict[str, Any]]) -> str:
    """Milliseconds of an image by batch size, at the start; and how much that changed."""
    first, last = measured[0]["milliseconds"], measured[-1]["milliseconds"]
    each = {int(size): taken / int(size) for size, taken in first.items()}
    best = min(each, key=lambda size: each[size])
    gain = each[1] / each[best]
    drift = last["1"] / first["1"] - 1
    direction = "longer" if drift > 0 else "shorter"
    helps = (
        f"Batches of {best} serve {gain:.2f} times as many images per second as single images."
        if gain > 1.02
        else "Batching does not help here: single images are as fast."
    )
    return (
        "| images in a batch | " + " | ".join(str(size) for size in each) + " |\n"
        "|---|" + "---|" * len(each) + "\n"
        "| ms an image | " + " | ".join(f"{taken:.2f}" for taken in each.values()) + " |\n\n"
        f"{helps} A single image took {abs(drift):.0%} {direction} at the end than at the "
        "start.\n"
    )


def _rates(cells: list[dict[str, Any]], columns: list[tuple[str, float]]) -> str:
    heads = [f"{_KINDS[kind]}, {target:g} ms" for kind, target in columns]
    lines = ["| frames/s | " + " | ".join(heads) + " |", "|---|" + "---|" * len(columns)]
    for system in dict.fromkeys(cell["system"] for cell in cells):
        shown = []
        for column in columns:
            cell = _find(cells, system, column)
            shown.append("–" if cell is None else _rate(cell))
        lines.append(f"| {system} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _rate(cell: dict[str, Any]) -> str:
    setting = str(Config(**cell["config"])) if cell["system"] != "batch 1" else ""
    return f"{cell['frames_per_second']:g}" + (f" ({setting})" if setting else "")


def _verdicts(cells: list[dict[str, Any]], columns: list[tuple[str, float]]) -> str:
    """How rightbatch stands to the best of the others, column by column."""
    lines = []
    for kind, target in columns:
        mine = _find(cells, "rightbatch", (kind, target))
        others = [
            cell
            for cell in cells
            if (cell["kind"], cell["target_ms"]) == (kind, target) and cell is not mine
        ]
        if mine is None or not others:
            continue
        best = max(others, key=lambda cell: cell["frames_per_second"])
        ratio = mine["frames_per_second"] / (best["frames_per_second"] or float("nan"))
        place = "first" if ratio >= 1 else "within 2% of the best" if ratio >= _WITHIN else "behind"
        lines.append(
            f"- {_KINDS[kind]}, {target:g} ms: {place}, {ratio:.2f} times {best['system']}"
        )
    return "\n".join(lines) + "\n"


def _details(cells: list[dict[str, Any]]) -> str:
    lines = [
        "| system | load | frames/s | in time | p50, p99 ms | client late, ms | client cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        name = cell["system"] + (", HTTP" if cell["http"] else "")
        load = f"{_KINDS[cell['kind']]}, {cell['target_ms']:g} ms"
        if not cell["runs"]:
            lines.append(f"| {name} | {load} | 0 | – | – | – | – |")
            continue
        row = cell["runs"][-1]
        in_time = row["in_time"][str(cell["target_ms"] / 1000)] / row["offered"]
        cores = "–" if row["client_cores"] is None else f"{row['client_cores']:.2f}"
        lines.append(
            f"| {name} | {load} | {cell['frames_per_second']:g} | {in_time:.2%} | "
            f"{row['p50_ms']:.1f}, {row['p99_ms']:.1f} | {row['client_lag_ms']:.1f} | {cores} |"
        )
    return "\n".join(lines) + "\n"


def _find(
    cells: list[dict[str, Any]], system: str, column: tuple[str, float]
) -> dict[str, Any] | None:
    return next(
        (c for c in cells if c["system"] == system and (c["kind"], c["target_ms"]) == column), None
    )
