"""The reason of a plan, as text."""

from __future__ import annotations

import math

from rightbatch._fit.result import FitResult
from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._tune.decision import Decision, Expected
from rightbatch._tune.plan import Branch

NOT_WORSE = 0.01
"""Loss above the best branch up to which a branch counts as equally good."""
_BEST = {
    "time": "reaches the target soonest",
    "cost": "costs least",
    "energy": "takes least energy",
}
_WOULD = {
    "time": "take {} times as long",
    "cost": "cost {} times as much",
    "energy": "take {} times the energy",
}


def reason(
    decision: Decision, largest: FitResult, objective: str, branches: tuple[Branch, ...]
) -> str:
    """Return why the size was chosen, which sizes may be as good, and the time of two others.

    The two are the default size and the largest tried.
    """
    size = decision.batch_size
    text = f"expected to be the size that {_BEST[objective]}"
    if any(each.relative_time < 1 for each in decision.expected if _is_above(each, decision)):
        text += f" of those up to {decision.most}, which leave enough updates"
    others = [str(other) for other in decision.alike if other != size]
    if others:
        text += f" ({', '.join(others)} may be as good, at a larger size)"
    names = {DEFAULT_BATCH: "the default", largest.batch_size: "the largest tried"}
    by_size = {each.batch_size: each for each in decision.expected}
    for other, name in names.items():
        each = by_size.get(other)
        if other != size and each is not None:
            would = _WOULD[objective].format(f"{each.relative_time:.2g}")
            text += f"; {other}, {name}, would {would}"
            if each.relative_time < 1 and _is_above(each, decision):
                text += " but leaves too few updates"
    branches = tuple(branch for branch in branches if math.isfinite(branch.loss))
    if branches:
        best = min(branch.loss for branch in branches)
        good = max(b.batch_size for b in branches if b.loss <= best + NOT_WORSE)
        ends = ", ".join(f"{b.loss:.4g} at {b.batch_size}" for b in branches)
        text += (
            f". Branches of {branches[0].examples} examples ended at a loss of {ends}: {good} is "
            "the largest size that is not worse"
        )
    return text


def _is_above(each: Expected, decision: Decision) -> bool:
    return decision.most is not None and each.batch_size > decision.most
