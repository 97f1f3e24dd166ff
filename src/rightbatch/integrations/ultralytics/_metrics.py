"""Names of Ultralytics' metrics: as people say them, and as loggers write them."""

from __future__ import annotations

_OF_BOXES = ("precision", "recall", "mAP50", "mAP50-95")
_OTHERS = (
    *(f"{name}{kind}" for name in _OF_BOXES for kind in "BMP"),
    "accuracy_top1",
    "accuracy_top5",
)
"""Metrics by the last part of their names; B is of boxes, M of masks, P of poses."""


def logged_name(name: str) -> str:
    """Return a metric's name as Ultralytics' loggers write it: trackers take no parentheses."""
    return name.replace("(", "").replace(")", "")


def full_name(name: str) -> str:
    """Return the logged name of a metric that a person names, perhaps by its last part.

    >>> full_name("mAP50"), full_name("metrics/mAP50(B)"), full_name("evaluation_loss")
    ('metrics/mAP50B', 'metrics/mAP50B', 'evaluation_loss')
    """
    name = logged_name(name)
    if name in _OF_BOXES:
        return f"metrics/{name}B"
    return f"metrics/{name}" if name in _OTHERS else name
