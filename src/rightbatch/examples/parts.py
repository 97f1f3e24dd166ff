"""A detection data set of machined parts on a conveyor belt, rendered from a seed.

The classes are scratches, dents, missing holes and stains on flanges, plates and washers. A few
hundred images take a few seconds; the same seed gives the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch.examples._labels import CLASSES, Box

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

_PARAMETERS = "rightbatch-parts.json"
_DATA = "data.yaml"
_FORMAT = 1  # increment when the same parameters give different images or labels
_CONTENTS = {"images", "labels", _DATA, _PARAMETERS}
_MIN_SIZE = 64  # pixels; below, a defect is only a few pixels wide
_JPEG_QUALITY = 92
_SPLITS = {"train": 0, "val": 1}  # part of the seed, so that the splits differ


def render_parts(
    out: str | os.PathLike[str],
    *,
    images: int = 240,
    validation: int = 60,
    size: int = 320,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Render the data set into `out` in YOLO's layout, and return the path of its data.yaml.

    A folder that was rendered with the same parameters is kept, one with other parameters is
    rendered again. The folder is created when it is complete: an interrupted render leaves nothing
    behind.

    Args:
        out: folder for `images/{train,val}`, `labels/{train,val}` and `data.yaml`.
        images: number of training images.
        validation: number of validation images.
        size: side of the square images, in pixels.
        seed: the same seed gives the same bytes.
        progress: called with the number of images done and their total.

    Raises:
        UsageError: if a number is out of range, or `out` contains other files.
        MissingExtraError: if OpenCV is not installed.
    """
    parameters = {
        "format": _FORMAT,
        "images": _checked_integer("images", images, 1),
        "validation": _checked_integer("validation", validation, 1),
        "size": _checked_integer("size", size, _MIN_SIZE),
        "seed": _checked_integer("seed", seed, 0),
    }
    folder = Path(out).resolve()
    if _is_rendered(folder, parameters):
        return folder / _DATA
    scene = _import_scene()
    with _atomic_folder(folder) as work:
        total = images + validation
        for done in range(total):
            split, index = ("train", done) if done < images else ("val", done - images)
            _write_image(scene, work, split, index, size, seed)
            if progress is not None:
                progress(done + 1, total)
        (work / _DATA).write_text(_data_yaml(folder), encoding="utf-8")
        (work / _PARAMETERS).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
    return folder / _DATA


def render_frames(
    count: int, *, size: tuple[int, int] = (640, 360), seed: int = 0
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Box]]]:
    """Render a video of the moving belt: frames (height, width, 3), uint8 RGB, with their defects.

    The belt moves by the same integer number of pixels between frames. The box of a defect at the
    frame's edge covers its visible part.

    Args:
        count: number of frames.
        size: width and height in pixels.
        seed: the same seed gives the same frames, whatever `count` is.

    Raises:
        UsageError: if a number is out of range.
        MissingExtraError: if OpenCV is not installed.
    """
    _checked_integer("count", count, 1)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise UsageError(f"size is {size!r}; expected (width, height), for example (640, 360)")
    width = _checked_integer("width", size[0], _MIN_SIZE)
    height = _checked_integer("height", size[1], _MIN_SIZE)
    _checked_integer("seed", seed, 0)
    frames: Iterator[tuple[npt.NDArray[np.uint8], list[Box]]]
    frames = _import_scene().render_video(seed, count, width, height)
    return frames


def _checked_integer(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}; expected an integer, {least} or more")
    return value


def _import_scene() -> ModuleType:
    """Import the module that draws; it requires OpenCV and numpy."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("opencv-python", "yolo") from error
    from rightbatch.examples import _scene

    return _scene


def _is_rendered(folder: Path, parameters: dict[str, int]) -> bool:
    """Return whether `folder` was rendered with these parameters.

    Raises:
        UsageError: if it contains files that `render_parts` did not write.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder that is new, empty or a former render")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return False
    if _PARAMETERS not in names or names - _CONTENTS:
        others = sorted(names - _CONTENTS) or sorted(names)
        raise UsageError(
            f"{folder} contains a file that render_parts did not write ({others[0]}); nothing was "
            "changed: give a folder that is new, empty or a former render"
        )
    try:
        if json.loads((folder / _PARAMETERS).read_text(encoding="utf-8")) != parameters:
            return False
    except ValueError:
        return False
    for split, count in (("train", parameters["images"]), ("val", parameters["validation"])):
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            if sum(1 for _ in (folder / kind / split).glob(f"*.{suffix}")) != count:
                return False
    # data.yaml contains the folder's path, and the folder may have been moved.
    data = folder / _DATA
    if not data.exists() or data.read_text(encoding="utf-8") != _data_yaml(folder):
        data.write_text(_data_yaml(folder), encoding="utf-8")
    return True


@contextlib.contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` at the end, or is deleted after an error."""
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


def _write_image(
    scene: ModuleType, work: Path, split: str, index: int, size: int, seed: int
) -> None:
    import cv2
    import numpy as np

    # A seed per image: the first images are the same, whatever their number.
    rng = np.random.default_rng([seed, 0, _SPLITS[split], index])
    image, boxes = scene.render_image(rng, size)
    done, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    for kind, suffix, content in (
        ("images", "jpg", jpeg.tobytes()),
        ("labels", "txt", "".join(_label_line(box, size) for box in boxes).encode()),
    ):
        path = work / kind / split / f"{index:05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _label_line(box: Box, size: int) -> str:
    """Return the class, then the centre and the sides as shares of the image's side."""
    centre_x, centre_y = (box.x0 + box.x1) / 2 / size, (box.y0 + box.y1) / 2 / size
    width, height = (box.x1 - box.x0) / size, (box.y1 - box.y0) / size
    return f"{CLASSES.index(box.label)} {centre_x:.6f} {centre_y:.6f} {width:.6f} {height:.6f}\n"


def _data_yaml(folder: Path) -> str:
    # A JSON string is also a valid YAML string, whatever characters the path has.
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    return (
        f"path: {json.dumps(str(folder), ensure_ascii=False)}\n"
        f"train: images/train\nval: images/val\nnames:\n{names}"
    )
