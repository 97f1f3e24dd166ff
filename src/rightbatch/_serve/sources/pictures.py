"""Picture files and iterables of arrays as sources."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch._serve.sources.decoding import FILES, open_picture, pages, to_rgb
from rightbatch._serve.sources.frames import DamagedFrameError, Timeouts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_PHOTOS = (".avif", ".bmp", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
PICTURES = frozenset((*_PHOTOS, ".gif", ".tif", ".tiff"))


class PictureSource:
    """Picture files in order, page by page.

    Of a folder, a file that cannot be read raises `DamagedFrameError`; a single file has failed.
    """

    is_live = False

    def __init__(self, files: Iterable[Path], timeouts: Timeouts) -> None:
        self._files = tuple(files)
        self._left: Iterator[Path] = iter(())
        self._pages: Generator[NDArray[np.uint8]] | None = None
        self._path = Path()

    def open(self) -> None:
        self._left = iter(self._files)

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        while True:
            captured = time.monotonic()
            if self._pages is None:
                path = next(self._left, None)
                if path is None:
                    return None
                self._path, self._pages = path, load_pages(path)
            try:
                return next(self._pages), captured
            except StopIteration:
                self._pages = None
            except Exception as error:
                self._pages = None
                if len(self._files) == 1:
                    raise ValueError(f"{self._path.name}: {error}") from error
                raise DamagedFrameError(f"{self._path.name}: {error}") from error

    def close(self) -> None:
        self._left = iter(())
        self._pages = None


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
    """Read the first page of a picture as H×W×3 uint8 RGB, with its EXIF rotation applied."""
    return next(load_pages(path))


def load_pages(path: Path) -> Generator[NDArray[np.uint8]]:
    """Yield the pages of a picture as H×W×3 uint8 RGB, each with its EXIF rotation applied.

    The format is that of the contents; only those of `FILES` are opened.
    """
    from PIL import Image

    with open_picture(path, FILES) as picture:
        for page in pages(picture):
            if page.width * page.height > (Image.MAX_IMAGE_PIXELS or 2**62):
                raise ValueError(f"{page.width}×{page.height} pixels exceed Pillow's limit")
            yield to_rgb(page)


def _about(value: object) -> str:
    import numpy as np

    if isinstance(value, np.ndarray):
        return f"{'×'.join(map(str, value.shape))} {value.dtype}"
    return type(value).__name__
