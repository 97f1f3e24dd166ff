"""Data to try things on that is made here, never downloaded.

Importing this brings no numpy, no OpenCV and no torch: they are imported when rendering starts.
"""

from __future__ import annotations

from rightbatch.examples.parts import CLASSES, Box, render_frames, render_parts

__all__ = ["CLASSES", "Box", "render_frames", "render_parts"]
