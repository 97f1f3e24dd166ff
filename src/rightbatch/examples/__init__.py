"""Example data and trainings without downloads.

Importing this package does not import numpy, OpenCV or torch; rendering imports them.
"""

from __future__ import annotations

from rightbatch.examples._labels import CLASSES, Box
from rightbatch.examples.parts import render_frames, render_parts

__all__ = ["CLASSES", "Box", "render_frames", "render_parts"]
