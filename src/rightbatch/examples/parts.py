"""A detection data set of machined parts on a conveyor belt, rendered from a seed.

Scratches, dents, missing holes and stains are to be found on flanges, plates and washers. Nothing
is downloaded: a few hundred pictures take a few seconds, and the same seed gives the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

CLASSES = ("scratch", "dent", "missing_hole", "stain")

_STAMP = "rightbatch-parts.json"
_DATA = "data.yaml"
_FORMAT = 1  # to be raised when the same parameters give other pictures or labels
_OURS = {"images", "labels", _DATA, _STAMP}
_SMALLEST = 64  # pixels; below, a defect is a few pixels wide
_QUALITY = 92  # of the JPEG files
_SPLITS = {"train": 0, "val": 1}  # what tells their seeds apart


@dataclass(frozen=True)
class Box:
    """A defect in a picture, in pixels; `x1` and `y1` are just past its last column and row."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


def render_parts(
    out: str | os.PathLike[str],
    *,
    images: int = 240,
    validation: int = 60,
    size: int = 320,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Renders the data set into `out`, in YOLO's layout, and returns the path of its data.yaml.

    A folder that already holds what these parameters give is left as it is; one of ours with
    other parameters is rendered anew. The folder appears when it is complete: an interrupted
    render leaves nothing behind.

    Args:
        out: folder for `images/{train,val}`, `labels/{train,val}` and `data.yaml`.
        images: number of pictures to train on.
        validation: number of pictures to validate on.
        size: side of the square pictures, in pixels.
        seed: the same seed gives the same bytes.
        progress: called with the number of pictures done and their total.

    Raises:
        UsageError: if a number is out of range, or `out` holds something else.
        MissingExtraError: if OpenCV is not installed.
    """
    parameters = {
        "format": _FORMAT,
        "images": _whole("images", images, 1),
        "validation": _whole("validation", validation, 1),
        "size": _whole("size", size, _SMALLEST),
        "seed": _whole("seed", seed, 0),
    }
    folder = Path(out).resolve()
    if _is_rendered(folder, parameters):
        return folder / _DATA
    scene = _scene()
    with _appearing(folder) as work:
        total = images + validation
        for done in range(total):
            split, index = ("train", done) if done < images else ("val", done - images)
            _write_picture(scene, work, split, index, size, seed)
            if progress is not None:
                progress(done + 1, total)
        (work / _DATA).write_text(_data_yaml(folder), encoding="utf-8")
        (work / _STAMP).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
    return folder / _DATA


def render_frames(
    count: int, *, size: tuple[int, int] = (640, 360), seed: int = 0
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Box]]]:
    """A film of the same belt, moving: frames (height, width, 3), RGB, each with its defects.

    The belt moves by the same whole number of pixels from each frame to the next. A defect that
    the edge of the picture cuts has the box of what is seen of it.

    Args:
        count: number of frames.
        size: width and height in pixels.
        seed: the same seed gives the same frames, however many are asked for.

    Raises:
        UsageError: if a number is out of range.
        MissingExtraError: if OpenCV is not installed.
    """
    _whole("count", count, 1)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise UsageError(f"size is {size!r}; expected (width, height), for example (640, 360)")
    width, height = _whole("width", size[0], _SMALLEST), _whole("height", size[1], _SMALLEST)
    _whole("seed", seed, 0)
    film: Iterator[tuple[npt.NDArray[np.uint8], list[Box]]]
    film = _scene().film(seed, count, width, height)
    return film


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}; expected a whole number, {least} or more")
    return value


def _scene() -> ModuleType:
    """The module that draws, imported only now: it needs OpenCV and numpy."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("opencv-python", "yolo") from error
    from rightbatch.examples import _scene

    return _scene


def _is_rendered(folder: Path, parameters: dict[str, int]) -> bool:
    """Whether `folder` already holds this; raises if it holds something that is not ours."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder that is new, empty or a former render")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return False
    if _STAMP not in names or names - _OURS:
        strange = sorted(names - _OURS) or sorted(names)
        raise UsageError(
            f"{folder} holds something that render_parts did not write ({strange[0]}); it is left "
            "untouched: give a folder that is new, empty or a former render"
        )
    try:
        if json.loads((folder / _STAMP).read_text(encoding="utf-8")) != parameters:
            return False
    except ValueError:
        return False
    for split, count in (("train", parameters["images"]), ("val", parameters["validation"])):
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            if sum(1 for _ in (folder / kind / split).glob(f"*.{suffix}")) != count:
                return False
    # The folder may have been moved since; its data.yaml names where it was.
    data = folder / _DATA
    if not data.exists() or data.read_text(encoding="utf-8") != _data_yaml(folder):
        data.write_text(_data_yaml(folder), encoding="utf-8")
    return True


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its place at the end, or vanishes."""
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old, complete = aside / "old", False
    try:
        work = aside / "new"
        work.mkdir()
        yield work
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        complete = True
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
        for parent in () if complete else made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _write_picture(
    scene: ModuleType, work: Path, split: str, index: int, size: int, seed: int
) -> None:
    import cv2
    import numpy as np

    # A seed per picture: the first pictures are the same however many follow.
    rng = np.random.default_rng([seed, 0, _SPLITS[split], index])
    picture, boxes = scene.still(rng, size)
    done, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise RuntimeError("OpenCV could not write a JPEG")
    for kind, suffix, content in (
        ("images", "jpg", jpeg.tobytes()),
        ("labels", "txt", "".join(_label_line(box, size) for box in boxes).encode()),
    ):
        path = work / kind / split / f"{index:05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _label_line(box: Box, size: int) -> str:
    """The class, then the centre and the sides as shares of the picture."""
    centre_x, centre_y = (box.x0 + box.x1) / 2 / size, (box.y0 + box.y1) / 2 / size
    width, height = (box.x1 - box.x0) / size, (box.y1 - box.y0) / size
    return f"{CLASSES.index(box.label)} {centre_x:.6f} {centre_y:.6f} {width:.6f} {height:.6f}\n"


def _data_yaml(folder: Path) -> str:
    # A JSON string is a YAML string too, whatever is in the path.
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    return (
        f"path: {json.dumps(str(folder), ensure_ascii=False)}\n"
        f"train: images/train\nval: images/val\nnames:\n{names}"
    )
