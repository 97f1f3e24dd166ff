"""Picture files and iterables of arrays as sources."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch._serve.sources.frames import DamagedFrameError, Timeouts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PICTURES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


class PictureSource:
    """Picture files in order; a file that cannot be read raises `DamagedFrameError`."""

    is_live = False

    def __init__(self, files: Iterable[Path], timeouts: Timeouts) -> None:
        self._files = tuple(files)
        self._left: Iterator[Path] = iter(())

    def open(self) -> None:
        self._left = iter(self._files)

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        path = next(self._left, None)
        if path is None:
            return None
        captured = time.monotonic()
        try:
            return load_picture(path), captured
        except Exception as error:
            raise DamagedFrameError(f"{path.name}: {error}") from error

    def close(self) -> None:
        self._left = iter(())


class IterableSource:
    """The arrays of an iterable, copied, since it may reuse one buffer."""

    is_live = False

    def __init__(self, frames: Iterable[NDArray[np.uint8]], timeouts: Timeouts) -> None:
        self._frames = frames
        self._left: Iterator[NDArray[np.uint8]] = iter(())

    def open(self) -> None:
        self._left = iter(self._frames)

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        import numpy as np

        for image in self._left:
            if not (
                isinstance(image, np.ndarray)
                and image.dtype == np.uint8
                and image.ndim == 3
                and image.shape[2] == 3
            ):
                raise TypeError(f"the iterable must yield H×W×3 uint8 arrays, got {_about(image)}")
            return np.array(image, order="C"), time.monotonic()
        return None

    def close(self) -> None:
        self._left = iter(())


def pictures_in(path: Path) -> tuple[Path, ...]:
    """Return the pictures of a folder, sorted by name, or the one picture."""
    if not path.is_dir():
        return (path,)
    found = (file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    return tuple(sorted(file for file in found if file.is_file()))


def load_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture as H×W×3 uint8 RGB, with its EXIF rotation applied."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 2**62):
            raise ValueError(f"{image.width}×{image.height} pixels exceed Pillow's limit")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits: a conversion would clip them
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.array(upright.convert("RGB"))


def _about(value: object) -> str:
    import numpy as np

    if isinstance(value, np.ndarray):
        return f"{'×'.join(map(str, value.shape))} {value.dtype}"
    return type(value).__name__
