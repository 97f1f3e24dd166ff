"""`tune`: the batch size that reaches the target soonest, with what it takes to train at it."""

from __future__ import annotations

from rightbatch._tune.plan import Branch, Plan
from rightbatch._tune.tune import tune

__all__ = ["Branch", "Plan", "tune"]
