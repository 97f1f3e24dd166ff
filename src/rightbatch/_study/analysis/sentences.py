"""Sentences of a study's answer, and their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rightbatch._study.analysis.by_size import SizeFigures, Spread
from rightbatch._study.analysis.grouping import RunGroups
from rightbatch._study.records import Run, Status
from rightbatch._units import format_bytes, format_seconds

_ENDED: dict[Status, str] = {
    "out_of_memory": "ran out of memory",
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "stopped early",
}
_LISTED = 8
"""Most sizes whose memory a sentence lists; with more, it has the smallest and the largest."""
_SAME_LIMIT = 1.2
"""Limits within this factor count as equal: a CPU's free memory changes from run to run."""
_REASONS = 2
"""Most reasons that a sentence lists; every run keeps its own."""
_DIFFERENCES = (
    "workload",
    "model",
    "data",
    "epochs",
    "imgsz",
    "optimizer",
    "precision",
    "processes",
)
"""Parameters that have to be equal in a comparison of batch sizes."""


def amount(value: float, kind: str = "") -> str:
    """Return a number with three digits, seconds in their usual units.

    >>> amount(20571.7), amount(0.25134), amount(12.13, "seconds"), amount(310, "steps")
    ('20,600', '0.251', '12.1 s', '310')
    """
    if kind == "seconds":
        return f"{value:.3g} s" if value < 59.95 else format_seconds(value)
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_band(spread: Spread, kind: str = "") -> str:
    """Return the median with the band of its seeds.

    >>> with_band(Spread(12.1, 11.8, 12.6, 3), "seconds")
    '12.1 s (11.8 to 12.6, 3 seeds)'
    """
    middle = amount(spread.middle, kind)
    if spread.count == 1:
        return f"{middle} (1 seed)"
    if kind == "seconds" and spread.high < 59.95:
        kind = ""
    low, high = amount(spread.low, kind), amount(spread.high, kind)
    return f"{middle} ({low} to {high}, {spread.count} seeds)"


def joined(parts: Sequence[str]) -> str:
    """Join parts as in a sentence.

    >>> joined(["8", "16", "32"])
    '8, 16 and 32'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def no_overlap_probability(count: int, other: int) -> str:
    """Return the probability that two bands do not overlap if the sizes do not differ.

    `count` and `other` are the numbers of seeds. All orders of the seeds' results are equally
    likely then, and the bands do not overlap in two of the orders.

    >>> no_overlap_probability(3, 3)
    '1 in 10'
    """
    return f"1 in {math.comb(count + other, count) // 2}"


def memory_sentence(figures: Sequence[SizeFigures]) -> str:
    """Return the largest peak of each size's seeds, and the limit; empty without measurements."""
    peaks = [(size, size.peak_bytes) for size in figures if size.peak_bytes is not None]
    if not peaks:
        return ""
    limits = {size.limit_bytes for size, _ in peaks if size.limit_bytes is not None}
    is_one = bool(limits) and max(limits) <= _SAME_LIMIT * min(limits)
    shown = peaks if len(peaks) <= _LISTED else [peaks[0], peaks[-1]]
    each = []
    for size, peak in shown:
        own = None if is_one else size.limit_bytes
        of_limit = f" of {format_bytes(own)}" if own is not None else ""
        each.append(f"{format_bytes(peak.high)}{of_limit} at {size.batch_size}")
    text = joined(each) if shown is peaks else f"from {' to '.join(each)}"
    limit = f", of a limit of {format_bytes(min(limits))}" if is_one else ""
    return f"Peak memory: {text}{limit}."


def failed_sizes(groups: RunGroups) -> list[str]:
    """Return a sentence for each size at which every run failed; they start the answer."""
    return [
        f"Batch size {size.batch_size} failed in {len(size.runs)} of {len(size.runs)} runs"
        f"{_reasons(size.runs)}."
        for size in groups.sizes
        if all(run.status == "failed" for run in size.runs)
    ]


def endings(groups: RunGroups, figures: Sequence[SizeFigures]) -> list[str]:
    """Return sentences on the runs that are not compared, and on other differences of the runs."""
    sentences = []
    for status, ended in _ENDED.items():
        for size in groups.sizes:
            runs = [run for run in size.runs if run.status == status]
            if runs and not (status == "failed" and len(runs) == len(size.runs)):
                share = f"in {len(runs)} of {len(size.runs)} runs"
                sentences.append(f"Batch size {size.batch_size} {ended} {share}{_reasons(runs)}.")
    running = sum(size.statuses.get("running", 0) for size in figures)
    if running:
        sentences.append(f"{_runs(running)} still running.")
    if groups.superseded:
        sentences.append(f"{_runs(len(groups.superseded))} left out: stopped and restarted.")
    if groups.unsized:
        sentences.append(f"{_runs(len(groups.unsized))} left out: unknown batch size.")
    searched = [size for size in groups.sizes if len(size.factors) > 1]
    if searched:
        best = joined([f"× {size.factor:g} at {size.batch_size}" for size in searched])
        sentences.append(f"Each size is compared at the best learning rate that was tried: {best}.")
    return sentences + _differences([run for size in groups.sizes for run in size.chosen])


def _reasons(runs: Sequence[Run]) -> str:
    reasons = list(dict.fromkeys(run.reason.strip().rstrip(".") for run in runs if run.reason))
    if not reasons:
        return ""
    more = len(reasons) - _REASONS
    text = "; ".join(reasons[:_REASONS])
    return f": {text}" + (f"; and {more} more reasons" if more > 0 else "")


def _runs(count: int) -> str:
    return f"{count} run is" if count == 1 else f"{count} runs are"


def _differences(runs: Sequence[Run]) -> list[str]:
    sentences = []
    devices = sorted({run.device for run in runs if run.device})
    if len(devices) > 1:
        sentences.append(
            f"The runs used different devices ({', '.join(devices)}): do not compare their "
            "seconds or memory."
        )
    differing = [
        f"{name} ({', '.join(values)})"
        for name in _DIFFERENCES
        if len(values := sorted({run.parameters.get(name, "") for run in runs} - {""})) > 1
    ]
    if differing:
        sentences.append(f"The runs differ in more than batch size: {joined(differing)}.")
    return sentences
