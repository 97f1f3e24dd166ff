"""Figures of the rows: hits, positions in the bracket, predictions that fail, memory left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import fmean, median
from typing import Any

Line = dict[str, Any]
"""A row with its prediction, as `run` stores it."""

FAMILIES = ("convolutional", "attention", "hybrid", "other")


def position(line: Line) -> float:
    """Return where the predicted size lies: 0 is the size that ran, 1 the one that failed."""
    ran, failed = line["ran"], line["failed"]
    return float(((line["largest"] or 0) - ran) / (failed - ran))


def is_hit(line: Line) -> bool:
    """Return whether the predicted size is in the bracket [ran, failed)."""
    return line["ran"] <= (line["largest"] or 0) < line["failed"]


def outside(line: Line) -> float:
    """Return by which share the prediction is below `ran` (negative), or above what can be known.

    The largest size that may have run is one below `failed`.
    """
    largest = line["largest"] or 0
    if largest < line["ran"]:
        return float(largest / line["ran"] - 1)
    return float(largest / (line["failed"] - 1) - 1) if largest >= line["failed"] else 0.0


def unused(line: Line) -> float:
    """Return the share of examples that ran and that the prediction leaves out."""
    return max(-outside(line), 0.0) if (line["largest"] or 0) < line["ran"] else 0.0


def followed(lines: Iterable[Line]) -> list[Line]:
    """Return the rows of brackets that have a prediction."""
    return [line for line in lines if line["failed"] and "largest" in line]


def figures(lines: Iterable[Line]) -> dict[str, Any]:
    """Return the figures of a group of rows of brackets."""
    rows = [line for line in lines if line["failed"]]
    known = followed(rows)
    errors = [outside(line) for line in known if not is_hit(line)]
    inside = [position(line) for line in known if is_hit(line)]
    return {
        "rows": len(rows),
        "followed": len(known),
        "hits": sum(map(is_hit, known)),
        "below": sum(error < 0 for error in errors),
        "failing": sum((line["largest"] or 0) >= line["failed"] for line in known),
        "position": fmean(inside) if inside else None,
        "worst_low": min([*errors, 0.0]),
        "worst_high": max([*errors, 0.0]),
        "unused": fmean(map(unused, known)) if known else None,
        "seconds": median(line["step_seconds"] for line in known) if known else None,
    }


def table(lines: list[Line]) -> str:
    """Return the table by kind, GPU and family, and the rows outside or not followed."""
    text = _HEAD
    for kind, gpu in sorted({(line["kind"], line["gpu"]) for line in lines if line["failed"]}):
        of = [line for line in lines if (line["kind"], line["gpu"]) == (kind, gpu)]
        text += _row(f"{_KINDS[kind]}, {gpu}", of)
    for name, chosen in _GROUPS.items():
        text += _row(name, list(filter(chosen, lines)))
    return text + "\n" + _fine_tunings(lines) + _outside(lines) + _unfollowed(lines)


_FAR = 0.02
"""Fine-tunings whose error is farther from the median are listed by name."""
_KINDS = {"train": "training", "infer": "inference"}
_HEAD = (
    "| rows | number | followed | in the bracket | below | at or above the size that failed "
    "| mean position | unused | seconds per step |\n|---|---|---|---|---|---|---|---|---|\n"
)


def _group(kind: str, family: str) -> Callable[[Line], bool]:
    return lambda line: line["kind"] == kind and line.get("family") == family


_GROUPS = {f"{_KINDS[kind]}, {value}": _group(kind, value) for kind in _KINDS for value in FAMILIES}


def _row(name: str, lines: list[Line]) -> str:
    found = figures(lines)
    if not found["rows"]:
        return ""
    known = found["followed"]
    if not known:
        return f"| {name} | {found['rows']} | 0 | | | | | | |\n"
    where = "" if found["position"] is None else f"{found['position']:.2f}"
    return (
        f"| {name} | {found['rows']} | {known} | {found['hits']} ({found['hits'] / known:.0%}) "
        f"| {found['below']} | {found['failing']} ({found['failing'] / known:.1%}) | {where} "
        f"| {found['unused']:.1%} | {found['seconds']:.0f} |\n"
    )


def _fine_tunings(lines: list[Line]) -> str:
    """Return the errors of reserved bytes about their median, since the length is calibrated."""
    known = [line for line in lines if "reserved" in line]
    if not known:
        return ""
    errors = {line["model"]: line["reserved"] / line["peak_bytes"] - 1 for line in known}
    middle = median(errors.values())
    near = [error for error in errors.values() if abs(error - middle) <= _FAR]
    far = {name: error for name, error in errors.items() if abs(error - middle) > _FAR}
    seconds = median(line["step_seconds"] for line in known)
    text = (
        f"{len(errors)} fine-tunings of a 3B model: reserved bytes {middle:+.1%} at the median; "
        f"{len(near)} are within {_FAR:.0%} of it, {median(abs(e - middle) for e in near):.1%} "
        f"from it at their median; {seconds:.0f} s each"
    )
    if far:
        named = sorted(far.items(), key=lambda item: item[1])
        text += "; farther: " + ", ".join(f"{name} ({error:+.1%})" for name, error in named)
    return text + "\n\n"


def _outside(lines: list[Line]) -> str:
    missed = sorted((line for line in followed(lines) if not is_hit(line)), key=outside)
    if not missed:
        return ""
    text = "| outside the bracket | predicted | bracket | by |\n|---|---|---|---|\n"
    for line in missed:
        where = f"{_KINDS[line['kind']]}, {line['gpu']}: {line['model']}, {line['image_size']}"
        layout = ", channels_last" if line["layout"] == "nhwc" else ""
        bracket = f"{line['ran']} to {line['failed']}"
        text += f"| {where}{layout} | {line['largest']} | {bracket} | {outside(line):+.1%} |\n"
    return text + "\n"


def _unfollowed(lines: list[Line]) -> str:
    reasons = Counter(_short(line["error"]) for line in lines if "error" in line)
    if not reasons:
        return "Every row was followed.\n"
    text = "| not followed | rows |\n|---|---|\n"
    return text + "".join(f"| {reason} | {n} |\n" for reason, n in reasons.most_common()) + "\n"


def _short(error: str) -> str:
    return " ".join(error.replace("|", "/").split())[:160]
