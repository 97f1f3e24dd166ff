"""Small pictures of a source's newest frame, for the page."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIZE = (640, 480)  # pixels, at most


class Snapshots:
    """Makes a JPEG of each frame that is asked for once, however many ask at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frame: NDArray[np.uint8] | None = None
        self._file = b""

    def of(self, frame: NDArray[np.uint8]) -> bytes:
        """Return a frame (H×W×3) as a JPEG of at most 640×480 pixels."""
        with self._lock:
            if frame is not self._frame:
                self._file = _jpeg(frame)
                self._frame = frame
            return self._file


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    import numpy as np
    from PIL import Image

    height, width = frame.shape[:2]
    scale = min(_SIZE[0] / width, _SIZE[1] / height, 1.0)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Of a large frame every nth pixel, twice as many as are needed: Pillow would copy all of them.
    thin = frame[:: max(1, height // (2 * size[1])), :: max(1, width // (2 * size[0]))]
    picture = Image.fromarray(np.ascontiguousarray(thin)).resize(size)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()
