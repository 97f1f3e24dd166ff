"""Ways to save memory: variants of a step, and what each would save of its peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rightbatch._predict.trace import Trace

Remedies = Mapping[str, dict[str, Any]]
"""Fields of `Variant` by the name that a person reads."""

BF16: Remedies = {"bf16 precision": {"precision": "bf16"}}
CHECKPOINTING: Remedies = {"activation checkpointing": {"checkpointing": True}}
IN_STEP: Remedies = {
    **BF16,
    **CHECKPOINTING,
    "a fused optimizer": {"optimizer": "fused"},
    "an optimizer that loops over parameters": {"optimizer": "loop"},
    "accumulation over 2 micro-batches": {"accumulation": 2},
}
"""For a step that fits, or nearly."""
FOR_ONE_EXAMPLE: Remedies = {
    **BF16,
    "images of half the width and height": {"halved": True},
    **CHECKPOINTING,
}
"""Where not even one example fits."""
_SAVING = 0.99
"""A variant saves memory if its peak is below this share of the original."""


def tasks_of(remedies: Remedies, batch_size: int) -> list[dict[str, Any]]:
    """Return what to ask `FollowProcess.follow` for, one task for each remedy."""
    return [{"batch_size": batch_size} | variant for variant in remedies.values()]


def bytes_saved(
    peak: int, remedies: Remedies, answers: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Return the bytes that each remedy saves of the `peak`, if it saves any.

    `answers` are those to `tasks_of`. A variant that cannot be followed saves nothing: the model
    has no blocks to checkpoint, or the batch cannot be split.
    """
    saved = {}
    for name, answer in zip(remedies, answers, strict=True):
        if answer["outcome"] == "ok":
            left = Trace.from_dict(answer["trace"]).peak_bytes
            if left < _SAVING * peak:
                saved[name] = peak - left
    return saved
