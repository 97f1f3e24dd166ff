"""Keeps Ultralytics from writing the user's files: settings, trackers, caches."""

from __future__ import annotations

import json
import os
import tempfile
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


def register_no_trackers() -> None:
    """Keep trackers from registering with a trainer: some start a run at once."""
    from ultralytics.engine import trainer

    trainer.callbacks.add_integration_callbacks = lambda *_: None


def write_no_caches() -> None:
    """Keep Ultralytics from writing `labels.cache` next to the user's labels."""
    import ultralytics.data.dataset as dataset

    def stamp_only(prefix: str, path: Any, cache: dict[str, Any], version: str) -> None:
        cache["version"] = version

    dataset.save_dataset_cache_file = stamp_only


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
