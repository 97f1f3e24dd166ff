"""`batch=-1` and `batch=0.7` measured instead of estimated, in an existing script.

Add one line::

    import rightbatch.integrations.ultralytics as measured; measured.install()

    from ultralytics import YOLO
    model = YOLO("yolo26n.pt")
    results = model.train(data="coco8.yaml", epochs=5, batch=-1)

`batch=-1` is then the largest batch whose training steps fit into 95% of the memory, `batch=0.7`
the largest for 70%; on CUDA, on the CPU, and with several GPUs. On one device the training also
survives out-of-memory errors, in any epoch and in validation: the batch is run in parts.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import cloudpickle

from rightbatch.integrations.ultralytics._training import UltralyticsTraining, require_ultralytics

if TYPE_CHECKING:
    from rightbatch._fit.result import FitResult

_DEFAULT_MARGIN = 0.05


def install() -> None:
    """Make every later `YOLO(...).train(batch=-1)` of this process measure its batch size.

    A second call does nothing; `uninstall` undoes it.

    Raises:
        MissingExtraError: if ultralytics is not installed.
    """
    require_ultralytics()
    from ultralytics.engine.trainer import BaseTrainer

    from rightbatch.integrations.ultralytics._elastic import ElasticYolo

    original = BaseTrainer.train
    if hasattr(original, "rightbatch_original"):
        return

    @functools.wraps(original)
    def train(trainer: Any) -> Any:
        if int(os.environ.get("RANK", -1)) == -1:
            if trainer.args.batch < 1:
                _measure(trainer)
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
    factory = UltralyticsTraining(
        overrides={k: v for k, v in vars(trainer.args).items() if k not in _RUN_ONLY},
        live=cloudpickle.dumps((type(trainer), model)),
        settings=dict(SETTINGS),
    )
    margin = 1 - share if share > 0 else _DEFAULT_MARGIN
    result = fit(factory, margin=margin, device=device, seed=int(trainer.args.seed))
    trainer.args.batch = trainer.batch_size = result.batch_size * world
    LOGGER.info(f"rightbatch: batch={share:g} measured as {trainer.args.batch}. {result}")
    return result


_RUN_ONLY = ("save_dir", "project", "name", "exist_ok", "resume", "batch", "device")
"""Arguments of a run that do not affect the memory of a step."""
