"""`batch=-1` and `batch=0.7` measured instead of estimated, in an existing script.

Add one line::

    import rightbatch.integrations.ultralytics as measured; measured.install()

    from ultralytics import YOLO
    model = YOLO("yolo26n.pt")
    results = model.train(data="coco8.yaml", epochs=5, batch=-1)

`batch=-1` is then the largest batch whose training steps fit into 95% of the memory, `batch=0.7`
the largest for 70%; on CUDA, on the CPU, and with several GPUs. On one device the training also
survives out-of-memory errors, in any epoch and in validation: the batch is run in parts. If the
measurement fails, the log says why, and the batch is the one that Ultralytics estimates.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from rightbatch._errors import UsageError
from rightbatch.integrations.ultralytics._training import UltralyticsTraining, require_ultralytics

if TYPE_CHECKING:
    from rightbatch._fit.result import FitResult

_DEFAULT_MARGIN = 0.05


def install(*, strict: bool = False) -> None:
    """Make every later `YOLO(...).train(batch=-1)` of this process measure its batch size.

    If a measurement fails, the training goes on with Ultralytics' estimate; with `strict` the error
    is raised. A second call changes `strict` only; `uninstall` undoes it.

    Raises:
        MissingExtraError: if ultralytics is not installed.
    """
    require_ultralytics()
    from ultralytics.engine.trainer import BaseTrainer

    from rightbatch.integrations.ultralytics._elastic import ElasticYolo

    original = getattr(BaseTrainer.train, "rightbatch_original", BaseTrainer.train)

    @functools.wraps(original)
    def train(trainer: Any) -> Any:
        if int(os.environ.get("RANK", -1)) == -1:
            if trainer.args.batch < 1:
                _measure_or_warn(trainer, strict)
            if int(trainer.world_size or 1) == 1:  # else Ultralytics starts its own processes
                ElasticYolo(trainer)
        return original(trainer)

    train.rightbatch_original = original  # type: ignore[attr-defined]
    BaseTrainer.train = train


def uninstall() -> None:
    """Undo `install`."""
    require_ultralytics()
    from ultralytics.engine.trainer import BaseTrainer

    BaseTrainer.train = getattr(BaseTrainer.train, "rightbatch_original", BaseTrainer.train)


def _measure_or_warn(trainer: Any, strict: bool) -> None:
    try:
        _measure(trainer)
    except Exception as error:
        if strict:
            raise
        from ultralytics.utils import LOGGER

        LOGGER.warning(
            f"rightbatch: batch={trainer.args.batch:g} could not be measured: {error}. The "
            "training goes on with Ultralytics' own estimate; install(strict=True) would raise "
            "the error instead."
        )


def _measure(trainer: Any) -> FitResult:
    """Set the trainer's batch size to the largest that fits; nothing else changes.

    With several GPUs one is measured, and each gets that size.
    """
    import torch
    from ultralytics.utils import LOGGER, SETTINGS

    from rightbatch._fit.fit import fit

    share = float(trainer.args.batch)
    world = max(int(trainer.world_size or 1), 1)
    device = str(trainer.device)
    if device == "cuda" and torch.cuda.is_available():
        device = "cuda:0"
    model = trainer.model if isinstance(trainer.model, torch.nn.Module) else None
    overrides = {k: v for k, v in vars(trainer.args).items() if k not in _RUN_ONLY}
    if trainer.args.task == "classify":  # Ultralytics may have split the folder that was given
        overrides["data"] = str(Path(trainer.data["train"]).parent)
    factory = UltralyticsTraining(
        overrides=overrides,
        live=_pickled((type(trainer), model, _own_attributes(trainer))),
        settings=dict(SETTINGS),
    )
    margin = 1 - share if share > 0 else _DEFAULT_MARGIN
    result = fit(factory, margin=margin, device=device, seed=int(trainer.args.seed))
    size = _without_single_image(result.batch_size, result.examples or 0, trainer)
    trainer.args.batch = trainer.batch_size = size * world
    LOGGER.info(f"rightbatch: batch={share:g} measured as {trainer.args.batch}. {result}")
    return result


def _without_single_image(size: int, examples: int, trainer: Any) -> int:
    """Return the largest size up to `size` whose last batch BatchNorm can train on.

    At less than two strides (64 pixels for most models) a last batch of one image has one value per
    channel, and Ultralytics refuses to train.
    """
    args = trainer.args
    strides = getattr(trainer.model, "stride", None)
    stride = max(_STRIDE, _STRIDE if strides is None else int(strides.max()))
    sides = args.imgsz if isinstance(args.imgsz, list | tuple) else [args.imgsz]
    side = math.ceil(max(map(int, sides)) / stride) * stride  # as `check_imgsz` rounds it
    if int(side * (1 - args.multi_scale)) >= 2 * stride:
        return size
    possible = (each for each in range(size, 1, -1) if examples % each != 1)
    return next(possible, size)


_STRIDE = 32
_RUN_ONLY = ("save_dir", "project", "name", "exist_ok", "resume", "batch", "device")
"""Arguments of a run that do not affect the memory of a step."""


def _own_attributes(trainer: Any) -> dict[str, bytes]:
    """Pickle what a script has put on its trainer, each by itself; what cannot be is left out.

    A probe's trainer gets those that it has not after its own `__init__`.
    """
    found: dict[str, bytes] = {}
    for name, value in vars(trainer).items():
        if name not in ("args", "callbacks", "model", "train"):
            with contextlib.suppress(Exception):  # any, of classes of one's own
                found[name] = _pickled_one(value)
    return found


def _pickled_one(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def _pickled(live: tuple[type, Any, dict[str, bytes]]) -> bytes:
    """Pickle a trainer's class, model and attributes for a probe's process.

    Raises:
        UsageError: if something of them cannot be sent to another process.
    """
    try:
        return _pickled_one(live)
    except Exception as error:
        raise UsageError(
            f"the trainer {live[0].__qualname__} cannot be sent to a probe's process: {error}. "
            "Keep what cannot be pickled out of the class and the model, or create it in __init__"
        ) from error


class _Pickler(cloudpickle.Pickler):
    """Also pickles locks, as new ones: nobody holds them in the new process."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _LOCKS):
            return (threading.Lock if isinstance(value, _LOCKS[0]) else threading.RLock), ()
        return super().reducer_override(value)


_LOCKS = (type(threading.Lock()), type(threading.RLock()))
