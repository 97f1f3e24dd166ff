"""Keeps Ultralytics from writing the user's files: settings, trackers, caches."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TRACKERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "sync")


def isolate(settings: dict[str, Any] | None) -> None:
    """Import ultralytics with separate settings for this process, and without trackers.

    `settings` are those of the parent process; default: those in the user's settings file.
    """
    settings = settings or _settings_of_user()
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
def data_untouched() -> Iterator[None]:
    """Keep Ultralytics from writing into the user's data set while it is scanned.

    It writes `labels.cache` beside the labels, and saves JPEGs anew that have bytes after their
    end, as those of many telephones have.
    """
    import ultralytics.data.dataset as dataset
    import ultralytics.data.utils as utils

    def stamp_only(prefix: str, path: Any, cache: dict[str, Any], version: str) -> None:
        cache["version"] = version

    replaced = {
        (dataset, "save_dataset_cache_file"): stamp_only,
        (utils, "_replace_image"): lambda image, write: None,
    }
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


def _settings_of_user() -> dict[str, Any]:
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
