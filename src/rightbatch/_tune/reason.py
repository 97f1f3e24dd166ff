"""Why a size was chosen, in a sentence."""

from __future__ import annotations

import math

from rightbatch._fit.result import FitResult
from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._tune.decision import Decision
from rightbatch._tune.plan import Branch

NOT_WORSE = 0.01
"""Of the loss: what a branch may end above the best one and still be as good."""
_WHAT = {"time": "reach the target soonest", "cost": "cost least", "energy": "take least energy"}


def reason(
    decision: Decision, largest: FitResult, objective: str, branches: tuple[Branch, ...]
) -> str:
    """With the sizes that cannot be told apart from it, and what others would take."""
    size, what = decision.batch_size, _WHAT[objective]
    others = [str(other) for other in decision.alike if other != size]
    text = f"it is expected to {what}"
    if others:
        text += f", as far as can be told ({', '.join(others)} may do as well, at a larger size)"
    by_size = {each.batch_size: each for each in decision.expected}
    compared = [
        f"{each.relative_time:.2f} times as much at {name}"
        for other, name in (
            (DEFAULT_BATCH, f"the default {DEFAULT_BATCH}"),
            (largest.batch_size, f"{largest.batch_size}, the largest that was tried"),
        )
        if other != size and (each := by_size.get(other)) is not None
    ]
    if compared:
        text += f"; it would be {' and '.join(compared)}"
    branches = tuple(branch for branch in branches if math.isfinite(branch.loss))
    if branches:
        best = min(branch.loss for branch in branches)
        good = max(b.batch_size for b in branches if b.loss <= best + NOT_WORSE)
        ends = ", ".join(f"{b.loss:.4g} at {b.batch_size}" for b in branches)
        text += (
            f". Branches over {branches[0].examples} examples ended at {ends}: {good} is the "
            "largest that is not worse"
        )
    return text
