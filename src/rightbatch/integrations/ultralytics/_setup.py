"""A trainer that is set up as `YOLO.train` does it, and writes into one folder only."""

from __future__ import annotations

import inspect
import pickle
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import get_cfg

from rightbatch._errors import UsageError
from rightbatch.integrations.ultralytics._arguments import (
    device_argument,
    without,
    without_disk_cache,
)
from rightbatch.integrations.ultralytics._data import missing_data_refused

FIRST = 2
"""Batch size for the setup; BatchNorm may not accept 1."""


class _Built(Exception):
    """Ends `YOLO.train` where its trainer would begin to train."""

    def __init__(self, trainer: Any) -> None:
        super().__init__("the trainer is built")
        self.trainer = trainer


def set_up_trainer(
    overrides: Mapping[str, Any], live: bytes | None, device: str, folder: str
) -> tuple[Any, int]:
    """Return a trainer that is ready to train, and how often its validation's batch is its batch.

    Raises:
        UsageError: for an argument that Ultralytics refuses, a missing package, or a data set of
            one image.
    """
    arguments = without_disk_cache(without(overrides, "save_dir")) | {
        "project": folder,
        "name": "probe",
        "exist_ok": True,
        "save": False,
        "plots": False,
        "batch": FIRST,
        "device": device_argument(device),
        "mode": "train",
        "verbose": False,
    }
    check_values(arguments)
    try:
        return _set_up(arguments, live)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Ultralytics needs the package {error.name} for this training: install it, as "
            "Ultralytics' documentation of the model or the argument says"
        ) from error
    except _LastImageError as error:
        # One image remains in the last batch; with one batch for all images there is no such rest.
        try:
            return _set_up(arguments | {"batch": error.images}, live)
        except _LastImageError as again:
            raise UsageError(str(again)) from again


def check_values(arguments: Mapping[str, Any]) -> None:
    """Check the arguments' names and values.

    Raises:
        UsageError: with Ultralytics' own message.
    """
    try:
        get_cfg(overrides=dict(arguments))
    except (TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f"Ultralytics refuses an argument: {error}") from error


def open_model_file(spec: str) -> Any:
    """Return Ultralytics' object for a model's name or file; `YOLO` opens no `rtdetr-l.yaml`."""
    path = Path(spec)
    is_rtdetr = "rtdetr" in path.stem.lower() and path.suffix in (".yaml", ".yml")
    return (RTDETR if is_rtdetr else YOLO)(spec)


class _LastImageError(Exception):
    """The last batch has one image, with which BatchNorm cannot train at this image size."""

    def __init__(self, message: str, images: int) -> None:
        super().__init__(message)
        self.images = images


def _set_up(arguments: Mapping[str, Any], live: bytes | None) -> tuple[Any, int]:
    with missing_data_refused():
        trainer = _built(dict(arguments), live)
    batch_sizes: dict[str, int] = {}
    loader_of = trainer.get_dataloader

    def get_dataloader(path: Any, batch_size: int = 16, *rest: Any, **keywords: Any) -> Any:
        mode = keywords.get("mode", rest[1] if len(rest) > 1 else "train")
        batch_sizes[mode] = int(batch_size)
        return loader_of(path, batch_size, *rest, **keywords)

    trainer.get_dataloader = get_dataloader
    try:
        trainer._setup_train()
    except ValueError as error:
        if "BatchNorm" not in str(error):
            raise
        raise _LastImageError(str(error), len(trainer.train_loader.dataset)) from error
    finally:
        del trainer.get_dataloader
    trainer._oom_retries = 0
    return trainer, max(batch_sizes.get("val", 0) // batch_sizes.get("train", 1), 1)


def _made_again(
    arguments: dict[str, Any], kind: Any, model: Any, attributes: Mapping[str, bytes]
) -> Any:
    """Return a trainer of a script's class, with the script's model and attributes.

    A class whose `__init__` needs more than Ultralytics gives it is initialized as Ultralytics' own
    class that it is derived from.
    """
    trainer = kind.__new__(kind)
    needed = {"overrides": arguments, "_callbacks": defaultdict(list)}
    try:
        inspect.signature(kind).bind(**needed)
        base = kind
    except (TypeError, ValueError):
        base = next(each for each in kind.__mro__ if each.__module__.startswith("ultralytics."))
    base.__init__(trainer, **needed)
    for name, value in attributes.items():
        if not hasattr(trainer, name):
            with suppress(Exception):  # any, of classes of one's own
                setattr(trainer, name, pickle.loads(value))
    if model is not None:
        trainer.model = model
    return trainer


def _built(arguments: dict[str, Any], live: bytes | None) -> Any:
    """Return the trainer that `YOLO.train` makes, with the model that its `get_model` makes."""
    if live is not None:
        return _made_again(arguments, *pickle.loads(live))
    yolo = open_model_file(arguments.pop("model"))
    trainer_class = yolo.task_map[yolo.task]["trainer"]

    def make(overrides: dict[str, Any], _callbacks: Any = None) -> Any:
        trainer = trainer_class(overrides=overrides, _callbacks=defaultdict(list))

        def train() -> None:
            raise _Built(trainer)

        trainer.train = train
        return trainer

    try:
        yolo.train(trainer=make, **arguments)
    except _Built as built:
        del built.trainer.train
        return built.trainer
    raise AssertionError("YOLO.train returned without training")
