"""What keeps Ultralytics from writing anything of the user's: settings, trackers, caches."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

_TRACKERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "sync")


def isolate(settings: dict[str, Any] | None) -> None:
    """Import ultralytics with settings of this process' own, and without trackers.

    `settings` are those of the process that asked; by default the user's own, read from their file.
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
    """Switch every tracker off, in the settings that this process uses."""
    from ultralytics.utils import SETTINGS

    SETTINGS.update({key: False for key in _TRACKERS if key in SETTINGS})


def register_no_trackers() -> None:
    """Keep trackers from registering themselves with a trainer: some begin a run at once."""
    from ultralytics.engine import trainer

    trainer.callbacks.add_integration_callbacks = lambda *_: None


def write_no_caches() -> None:
    """Keep Ultralytics from writing `labels.cache` beside the user's labels."""
    import ultralytics.data.dataset as dataset

    def stamp_only(prefix: str, path: Any, cache: dict[str, Any], version: str) -> None:
        cache["version"] = version

    dataset.save_dataset_cache_file = stamp_only


def _settings_of_user() -> dict[str, Any]:
    """Ultralytics' settings file, read without importing it, which would create one."""
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
