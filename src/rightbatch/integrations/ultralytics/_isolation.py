"""Keeps Ultralytics from writing the user's files: settings, trackers, caches."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError

_TRACKERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "sync")


def isolate(settings: dict[str, Any] | None) -> None:
    """Import ultralytics with separate settings for this process, and without trackers.

    `settings` are those of the parent process; default: those in the user's settings file.
    """
    settings = settings or settings_of_user()
    os.environ["YOLO_AUTOINSTALL"] = "false"  # a probe installs no packages
    os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")
    folder = Path(os.environ["YOLO_CONFIG_DIR"]) / "Ultralytics"
    folder.mkdir()
    if settings:
        quiet = settings | {key: False for key in _TRACKERS if key in settings}
        (folder / "settings.json").write_text(json.dumps(quiet))
    import ultralytics.models  # noqa: F401

    without_trackers()


def without_trackers() -> None:
    """Disable all trackers in the settings of this process."""
    from ultralytics.utils import SETTINGS

    SETTINGS.update({key: False for key in _TRACKERS if key in SETTINGS})


@contextmanager
def no_trackers() -> Iterator[None]:
    """Keep trackers from registering themselves with a trainer: some begin a run at once."""
    from ultralytics.engine import trainer

    own = trainer.callbacks.add_integration_callbacks
    trainer.callbacks.add_integration_callbacks = lambda *_: None
    try:
        yield
    finally:
        trainer.callbacks.add_integration_callbacks = own


@contextmanager
def data_untouched(*, caches_images: bool = False) -> Iterator[None]:
    """Keep Ultralytics from writing into the user's data set.

    It writes `labels.cache` beside the labels, saves JPEGs anew that have bytes after their end, as
    those of many telephones have, copies a classification folder without splits, and replaces or
    deletes `.npy` files beside the images; with `caches_images` (`cache="disk"`) it may make them,
    and refresh those with an image.
    """
    import ultralytics.data.base as base
    import ultralytics.data.dataset as dataset
    import ultralytics.data.split as split
    import ultralytics.data.utils as utils

    def stamp_only(prefix: str, path: Any, cache: dict[str, Any], version: str) -> None:
        cache["version"] = version

    def refuse_to_split(folder: Any, *_: Any, **__: Any) -> None:
        raise UsageError(without_splits(Path(folder)))

    replaced: dict[tuple[Any, str], Any] = {
        (dataset, "save_dataset_cache_file"): stamp_only,
        (utils, "_replace_image"): lambda image, write: None,
        (split, "split_classify_dataset"): refuse_to_split,
    }
    numpy = _CachingNumpy() if caches_images else _ReadOnlyNumpy()
    replaced |= {(base, "np"): numpy, (dataset, "np"): numpy, (base, "Path"): _KeptPath}
    own = {
        (module, name): getattr(module, name) for module, name in replaced if hasattr(module, name)
    }
    for module, name in own:
        setattr(module, name, replaced[module, name])
    try:
        yield
    finally:
        for (module, name), function in own.items():
            setattr(module, name, function)


def without_splits(folder: Path) -> str:
    """Return the message about a classification folder without `train`."""
    return (
        f"{folder} has no folder 'train': Ultralytics would copy all images to {folder}_split. "
        "Split it once with ultralytics.data.split.split_classify_dataset, and give the result as "
        "the data set"
    )


class _ReadOnlyNumpy:
    """numpy for Ultralytics' data sets, without `save`."""

    def __getattr__(self, name: str) -> Any:
        import numpy

        return getattr(numpy, name)

    @staticmethod
    def save(*_: Any, **__: Any) -> None:
        """Save nothing."""


class _CachingNumpy(_ReadOnlyNumpy):
    """numpy whose `save` replaces no file but those with an image, as Ultralytics caches them."""

    @staticmethod
    def save(file: str, array: Any, **options: Any) -> None:
        """Save an image, unless the file is something else of the user's."""
        import numpy

        path = Path(file)
        if path.exists() and not _is_image(path):
            return
        try:
            numpy.save(path, array, **options)
        except BaseException:
            path.unlink(missing_ok=True)  # a part of an image, which `_KeptPath` would keep
            raise


def _is_image(path: Path) -> bool:
    import numpy

    try:
        held = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return held.ndim in (2, 3) and held.dtype in (numpy.uint8, numpy.uint16)


class _KeptPath(type(Path())):  # type: ignore[misc]
    """`Path` for Ultralytics' data sets, without `unlink`."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete nothing."""


def settings_of_user() -> dict[str, Any]:
    """Read Ultralytics' settings file without importing ultralytics, which would create one."""
    home = Path.home()
    folders = [
        Path(os.environ["YOLO_CONFIG_DIR"]) if "YOLO_CONFIG_DIR" in os.environ else None,
        Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")),
        home / "AppData" / "Roaming",
        home / "Library" / "Application Support",
    ]
    for folder in folders:
        if folder is None:
            continue
        try:
            found = json.loads((folder / "Ultralytics" / "settings.json").read_text())
        except (OSError, ValueError):
            continue
        return dict(found)
    return {}
