"""`batch=-1` and `batch=0.7` of an unchanged script, measured instead of guessed.

In a script that exists, one line is added::

    import rightbatch.integrations.ultralytics as measured; measured.install()

    from ultralytics import YOLO
    model = YOLO("yolo26n.pt")
    results = model.train(data="coco8.yaml", epochs=5, batch=-1)

`batch=-1` is then the largest batch that survived real training steps within 95% of the memory,
`batch=0.7` the largest within 70%; on CUDA, on the CPU, and with several GPUs. On one device memory
that runs out in any epoch, or in validation, is survived too: the batch is run in parts.
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
    """Make every later `YOLO(...).train(batch=-1)` of this process measure its batch.

    Calling it twice is the same as once; `uninstall` takes it back.

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
            if int(trainer.world_size or 1) == 1:  # else Ultralytics starts processes of its own
                ElasticYolo(trainer)
        return original(trainer)

    train.rightbatch_original = original  # type: ignore[attr-defined]
    BaseTrainer.train = train


def uninstall() -> None:
    """Give `batch=-1` back to Ultralytics."""
    require_ultralytics()
    from ultralytics.engine.trainer import BaseTrainer

    BaseTrainer.train = getattr(BaseTrainer.train, "rightbatch_original", BaseTrainer.train)


def _measure(trainer: Any) -> FitResult:
    """Put the largest batch that survives into `trainer`; nothing else of it changes.

    With several GPUs one is measured, and every one gets as much.
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
"""Arguments that belong to a run and not to the question of how much memory a step needs."""
