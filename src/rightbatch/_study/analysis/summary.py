"""The answer of a study: figures by batch size, and what they say in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from rightbatch._study.analysis.by_size import SizeFigures, Spread, size_figures, steps_to_target
from rightbatch._study.analysis.critical_batch_size import (
    CriticalBatchSize,
    fit_critical,
)
from rightbatch._study.analysis.grouping import (
    RunGroups,
    common_axis,
    final_value,
    group_runs,
    last_place,
    metrics_of,
    value_at,
)
from rightbatch._study.analysis.sentences import (
    amount,
    endings,
    failed_sizes,
    joined,
    memory_sentence,
    no_overlap_probability,
    with_band,
)
from rightbatch._study.records import Axis, Run, Target
from rightbatch._training.targets import is_better

Cost = Literal["seconds", "steps", "examples"]
COSTS: tuple[Cost, ...] = get_args(Cost)
"""Costs of reaching a target; seconds first, since people wait for them."""
_NAMED = 4
"""Sizes as good as the best that a sentence names."""
_FEW_SEEDS = 5
"""With up to so many seeds, overlapping bands do not tell which size is better."""
_LED = {
    "seconds": "reached {target} first in seconds: {amount}",
    "steps": "took the fewest steps to it: {amount}",
    "examples": "took the fewest examples to it: {amount}",
}


@dataclass(frozen=True)
class Summary:
    """`first` has the batch size that reached the target at the lowest value of each cost.

    `critical` is None if it cannot be estimated; `critical_reason` says why, or what was fitted.
    """

    target: Target | None
    sizes: tuple[SizeFigures, ...]
    sentences: tuple[str, ...]
    first: Mapping[Cost, int | None]
    critical: CriticalBatchSize | None
    critical_reason: str
    gap_sentence: str

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        """The JSON, with the fitted curve over all sizes and a little beyond."""
        return {
            "answer": {"sentences": list(self.sentences), "first": dict(self.first)},
            "sizes": [size.to_dict() for size in self.sizes],
            "critical": (
                self.critical.to_dict(_between([size.batch_size for size in self.sizes]))
                if self.critical
                else None
            ),
            "critical_reason": self.critical_reason,
            "gap_sentence": self.gap_sentence,
        }


def summarize(runs: Iterable[Run], target: Target | None = None) -> Summary:
    """Compare batch sizes by the cost of reaching a target, or without one by a metric."""
    runs = tuple(runs)
    groups = group_runs(runs, target)
    figures = tuple(size_figures(size, target) for size in groups.sizes)
    critical, reason = None, "no target was set, so there are no steps to one to fit"
    if target is not None:
        critical, reason = _fit(
            tuple((size.batch_size, tuple(steps_to_target(size, target))) for size in groups.sizes)
        )
    first = {cost: _order(figures, cost)[0].batch_size for cost in COSTS if _order(figures, cost)}
    gap = gap_sentence(figures)
    if not runs:
        sentences = ["There are no runs yet."]
    elif target is None:
        sentences = _without_target(groups)
    else:
        sentences = _with_target(figures, target, groups)
        sentences.append(_critical_sentence(critical, reason))
    sentences = [
        *failed_sizes(groups),
        *sentences,
        memory_sentence(figures),
        gap if "overlap" in gap or "apart" in gap else "",
        *endings(groups, figures),
    ]
    return Summary(
        target=target,
        sizes=figures,
        sentences=tuple(sentence for sentence in sentences if sentence),
        first={cost: first.get(cost) for cost in COSTS},
        critical=critical,
        critical_reason=reason,
        gap_sentence=gap,
    )


def gap_sentence(figures: Sequence[SizeFigures]) -> str:
    """Whether the gap between evaluation and training loss differs by batch size."""
    gaps = {size.batch_size: size.gap for size in figures if size.gap is not None}
    if len(gaps) < 2:
        return (
            "The gap between training and evaluation loss cannot be compared: that needs two batch "
            "sizes with finished runs that measured both."
        )
    seeds = min(gap.count for gap in gaps.values())
    if seeds < 2:
        return "With one seed, a difference in the gap may be chance."
    lowest = min(gaps, key=lambda size: gaps[size].high)
    highest = max(gaps, key=lambda size: gaps[size].low)
    if gaps[lowest].overlaps(gaps[highest]):
        return "The gap's bands overlap: this study shows no difference."
    low, high = with_band(gaps[lowest]), with_band(gaps[highest])
    return (
        f"The gap between evaluation and training loss is {low} at batch size {lowest} and {high} "
        f"at {highest}: these bands are apart, which with {seeds} seeds happens by chance in "
        f"{no_overlap_probability(gaps[lowest].count, gaps[highest].count)} of such pairs."
    )


@lru_cache(maxsize=64)
def _fit(
    steps: tuple[tuple[int, tuple[float | None, ...]], ...],
) -> tuple[CriticalBatchSize | None, str]:
    """Cached, since the steps change only when a run reaches the target or ends."""
    return fit_critical(dict(steps))


def _order(figures: Iterable[SizeFigures], cost: Cost) -> list[SizeFigures]:
    """Sizes that reached the target, the lowest cost first."""
    costs = [
        (spread.middle, size.batch_size, size)
        for size in figures
        if size.is_reached and (spread := size.to_target(cost)) is not None
    ]
    return [size for *_, size in sorted(costs, key=lambda each: each[:2])]


def _with_target(figures: Sequence[SizeFigures], target: Target, groups: RunGroups) -> list[str]:
    if not any(size.count for size in figures):
        return [_not_reached(groups, target)]
    sentences = []
    for cost in COSTS:
        spreads = [
            (size.batch_size, spread)
            for size in _order(figures, cost)
            if (spread := size.to_target(cost)) is not None
        ]
        if spreads:
            (best, least), *others = spreads
            led = _LED[cost].format(target=target, amount=with_band(least, cost))
            alike = _alike(least, others, cost)
            sentences.append(f"Batch size {best} {led}{alike}.")
    if any(size.count == 1 for size in figures if size.is_reached):
        sentences.append("With one seed, the order may be chance.")
    missed = [
        f"{size.count or 'none'} of {size.of} at {size.batch_size}"
        for size in figures
        if size.count < size.of
    ]
    if missed:
        sentences.append(f"Runs that reached it: {joined(missed)}; all at the other sizes.")
    return sentences


def _alike(best: Spread, others: Sequence[tuple[int, Spread]], cost: str = "") -> str:
    """The other sizes that cannot be distinguished from the best."""
    alike = [(size, each) for size, each in others if best.count > 1 and best.overlaps(each)]
    if not alike:
        return ""
    seeds = min([best.count, *(each.count for _, each in alike)])
    names = joined([f"{size} ({amount(each.middle, cost)})" for size, each in alike[:_NAMED]])
    if len(alike) > _NAMED:
        names += f" and {len(alike) - _NAMED} more"
    if seeds > _FEW_SEEDS:
        return f"; its band overlaps with that of {names}"
    return f"; {names} cannot be told apart from it with {seeds} seed{'s' if seeds > 1 else ''}"


def _not_reached(groups: RunGroups, target: Target) -> str:
    is_running = any(run.status == "running" for size in groups.sizes for run in size.runs)
    text = f"No run {'has yet reached' if is_running else 'reached'} {target}"
    ends = {
        size.batch_size: value
        for size in groups.sizes
        for value in [Spread.of(final_value(run, target.metric) for run in size.chosen)]
        if value is not None
    }
    if not ends:
        measured = metrics_of(run for size in groups.sizes for run in size.runs)
        known = f"; what was: {', '.join(measured)}" if measured else ""
        return f"{text}: {target.metric} was not measured{known}."
    falls = is_better(target.metric, 0.0, 1.0)
    best = (min if falls else max)(ends, key=lambda size: ends[size].middle)
    return f"{text}; batch size {best} ended nearest: {with_band(ends[best])}."


def _without_target(groups: RunGroups) -> list[str]:
    """Compare by the first metric that all runs have, at equal examples.

    Only a size's finished runs count, or while none has finished, its running ones: a run that was
    stopped early would limit the comparison for all.
    """
    said = "No target was set, so sizes are compared by a metric at equal examples."
    by_size = {
        size.batch_size: [run for run in size.chosen if run.status == "finished"]
        or [run for run in size.chosen if run.status == "running" and run.curves]
        for size in groups.sizes
    }
    everyone = [run for runs in by_size.values() for run in runs]
    for metric in metrics_of(everyone):
        axis: Axis | None = common_axis(everyone, metric)
        places = [last_place(run, metric, axis) for run in everyone] if axis else []
        known = [place for place in places if place is not None]
        if axis is None or len(known) < len(everyone) or not known:
            continue
        values = {
            size: spread
            for size, runs in by_size.items()
            if (spread := Spread.of(value_at(run, metric, axis, min(known)) for run in runs))
        }
        if not values:
            continue
        sign = 1.0 if is_better(metric, 0.0, 1.0) else -1.0
        best, *others = sorted(values, key=lambda size: sign * values[size].middle)
        text = (
            f"After {amount(min(known))} {axis}, the most that all sizes have seen, {metric} is "
            f"best at batch size {best}: {with_band(values[best])}"
        )
        return [said, f"{text}{_alike(values[best], [(s, values[s]) for s in others])}."]
    return [said, "No metric was measured in every run yet."]


def _critical_sentence(critical: CriticalBatchSize | None, reason: str) -> str:
    if critical is None:
        return f"{reason[0].upper()}{reason[1:]}."
    return (
        f"Above {critical}, the critical batch size, more parallelism stops paying: it takes twice "
        f"the fewest steps ({amount(critical.steps_min)}) and twice the fewest examples "
        f"({amount(critical.examples_min)}), and larger batches save few steps for many examples "
        f"(fitted to {len(critical.sizes)} sizes, rms log error {critical.rms_log_error:.1%})."
    )


def _between(sizes: Sequence[int], places: int = 60) -> list[float]:
    """From the least to the most, evenly on a logarithmic axis, and the sizes themselves."""
    low, high = math.log(min(sizes) / 1.5), math.log(max(sizes) * 1.5)
    evenly = (math.exp(low + (high - low) * k / (places - 1)) for k in range(places))
    return sorted({*evenly, *map(float, sizes)})
