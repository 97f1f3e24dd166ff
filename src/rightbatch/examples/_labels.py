"""The classes of defects and their bounding boxes."""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = ("scratch", "dent", "missing_hole", "stain")


@dataclass(frozen=True)
class Box:
    """The bounding box of a defect, in pixels; `x1` and `y1` are exclusive."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
