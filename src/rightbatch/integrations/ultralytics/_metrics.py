"""Names of Ultralytics' metrics: short forms, and the names that loggers write."""

from __future__ import annotations

_OF_BOXES = ("precision", "recall", "mAP50", "mAP50-95")
_OTHERS = (
    *(f"{name}{kind}" for name in _OF_BOXES for kind in "BMP"),
    "accuracy_top1",
    "accuracy_top5",
)
"""The last parts of metric names; B stands for boxes, M for masks, P for poses."""


def logged_name(name: str) -> str:
    """Return a metric's name as Ultralytics' loggers write it, without parentheses."""
    return name.replace("(", "").replace(")", "")


def full_name(name: str) -> str:
    """Return the logged name of a metric, also for a short form.

    >>> full_name("mAP50"), full_name("metrics/mAP50(B)"), full_name("evaluation_loss")
    ('metrics/mAP50B', 'metrics/mAP50B', 'evaluation_loss')
    """
    name = logged_name(name)
    if name in _OF_BOXES:
        return f"metrics/{name}B"
    return f"metrics/{name}" if name in _OTHERS else name
