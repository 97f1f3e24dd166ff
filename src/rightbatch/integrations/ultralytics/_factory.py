"""Ultralytics: `batch=-1` measured instead of guessed, and YOLO models by their names.

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
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from rightbatch._errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from rightbatch._fit.result import FitResult
    from rightbatch._tune.pilot import PilotPlan, PilotReport
    from rightbatch._workload.workload import Session
    from rightbatch.integrations.ultralytics._elastic import ElasticYolo
    from rightbatch.integrations.ultralytics._study import YoloLoop

_FAMILIES = ("yolo", "rtdetr")
_TRACKERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "sync")
_DEFAULT_MARGIN = 0.05
_NOMINAL_BATCH = 64
_OF_BOXES = ("precision", "recall", "mAP50", "mAP50-95")
_OTHERS = (
    *(f"{name}{kind}" for name in _OF_BOXES for kind in "BMP"),
    "accuracy_top1",
    "accuracy_top5",
)
"""Metrics by the last part of their names; B is of boxes, M of masks, P of poses."""


def install() -> None:
    """Make every later `YOLO(...).train(batch=-1)` of this process measure its batch.

    Calling it twice is the same as once; `uninstall` takes it back.

    Raises:
        MissingExtraError: if ultralytics is not installed.
    """
    _require_ultralytics()
    from ultralytics.engine.trainer import BaseTrainer

    original = BaseTrainer.train
    if hasattr(original, "rightbatch_original"):
        return

    @functools.wraps(original)
    def train(trainer: Any) -> Any:
        if int(os.environ.get("RANK", -1)) == -1:
            if trainer.args.batch < 1:
                _measure(trainer)
            make_elastic(trainer)
        return original(trainer)

    train.rightbatch_original = original  # type: ignore[attr-defined]
    BaseTrainer.train = train


def make_elastic(trainer: Any) -> ElasticYolo | None:
    """Let a trainer survive memory that runs out; None with several GPUs.

    Ultralytics starts their processes itself, and these are not ours.
    """
    from rightbatch.integrations.ultralytics._elastic import ElasticYolo

    return None if int(trainer.world_size or 1) > 1 else ElasticYolo(trainer)


def uninstall() -> None:
    """Give `batch=-1` back to Ultralytics."""
    _require_ultralytics()
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
    factory = YoloFactory(
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


@dataclass(frozen=True)
class YoloFactory:
    """Makes sessions of Ultralytics' own trainer; can be sent to another process.

    `overrides` are the arguments of `YOLO.train`. From a script come `live`, the class of its
    trainer and its model, pickled by themselves so that ultralytics is not imported before `load`;
    and `settings`, those of Ultralytics there.
    """

    overrides: dict[str, Any]
    live: bytes | None = field(default=None, repr=False)
    settings: dict[str, Any] | None = field(default=None, repr=False)

    def load(self) -> YoloFactory:
        """Import ultralytics with settings of its own, so that no file of the user's is written."""
        settings = self.settings or _settings_of_user()
        os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")
        folder = Path(os.environ["YOLO_CONFIG_DIR"]) / "Ultralytics"
        folder.mkdir()
        if settings:
            quiet = settings | {key: False for key in _TRACKERS if key in settings}
            (folder / "settings.json").write_text(json.dumps(quiet))
        import ultralytics.models  # noqa: F401

        without_trackers()
        return self

    def session(self, device: str, inference: bool) -> Session:
        """Called in the probe's process, after `load`."""
        from rightbatch.integrations.ultralytics._session import YoloSession

        return YoloSession(self, device, inference=inference)

    def pilot(self, device: str, plan: PilotPlan, show: Callable[[str], object]) -> PilotReport:
        """A short training, for `tune`; called in a probe's process, after `load`."""
        from rightbatch.integrations.ultralytics._pilot import run_pilot

        return run_pilot(self, device, plan, show)

    @property
    def base_batch(self) -> int:
        """The batch size that Ultralytics' learning rates are for."""
        return int(self.overrides.get("nbs", _NOMINAL_BATCH))

    def metric_name(self, name: str) -> str:
        """As it is logged: `metrics/mAP50B` for `mAP50` and for `metrics/mAP50(B)`."""
        name = logged_name(name)
        if name in _OF_BOXES:
            return f"metrics/{name}B"
        return f"metrics/{name}" if name in _OTHERS else name

    def loop(self, **options: Any) -> YoloLoop:
        """A training that is watched, for `study`; called in a run's process, after `load`."""
        from rightbatch.integrations.ultralytics._study import YoloLoop

        return YoloLoop(self, **options)

    def train(
        self,
        *,
        batch: int,
        epochs: int,
        out: Path,
        device: str | None,
        seed: int,
        micro_batch: int | None = None,
        on_epoch: Callable[[int], object] | None = None,
        **options: Any,
    ) -> Trained:
        """Train through Ultralytics with an update every `batch` images; writes into `out`.

        Ultralytics' own `batch` is a micro-batch, of which it accumulates to `nbs`; here the two
        are one, unless `micro_batch` says otherwise.
        """
        from ultralytics import YOLO

        out = out.expanduser().resolve()
        arguments = {k: v for k, v in self.overrides.items() if k != "model"}
        arguments |= {"project": str(out.parent), "name": out.name, "exist_ok": True, "seed": seed}
        if device is not None:
            arguments["device"] = device.removeprefix("cuda:")
        arguments |= options
        model = YOLO(self.overrides["model"])
        if on_epoch is not None:
            model.add_callback("on_fit_epoch_end", lambda trainer: on_epoch(trainer.epoch + 1))
        elastic: list[ElasticYolo | None] = []
        model.add_callback(
            "on_pretrain_routine_start", lambda trainer: elastic.append(make_elastic(trainer))
        )
        started = time.perf_counter()
        model.train(**arguments, batch=micro_batch or batch, nbs=batch, epochs=epochs)
        trainer = model.trainer
        survived = sum(each.out_of_memory_events for each in elastic if each is not None)
        return Trained(
            examples=len(trainer.train_loader.dataset),
            epochs=trainer.epoch + 1,
            out_of_memory_events=trainer._oom_retries + survived,
            metrics={key: float(value) for key, value in model.metrics.results_dict.items()},
            out=Path(trainer.save_dir),
            seconds=time.perf_counter() - started,
        )


@dataclass(frozen=True)
class Trained:
    """What a finished training through Ultralytics tells `rightbatch.train`."""

    examples: int
    epochs: int
    out_of_memory_events: int
    metrics: dict[str, float]
    out: Path
    seconds: float


def from_spec(
    spec: str, *, data: str | None = None, imgsz: int | None = None, **options: Any
) -> YoloFactory | None:
    """A factory for `yolo26n.yaml`, `yolo26n.pt` and the like; None for what is no such name.

    Raises:
        UsageError: without `data`, or if `data` is a file that does not exist.
        MissingExtraError: if ultralytics is not installed.
    """
    path = Path(spec)
    if path.suffix not in (".yaml", ".yml", ".pt"):
        return None
    if not path.stem.lower().startswith(_FAMILIES) and not path.is_file():
        return None
    _require_ultralytics()
    if data is None:
        raise UsageError(
            f"{spec} needs a data set: --data DATA.yaml (data= in Python), in YOLO's layout"
        )
    if Path(data).suffix in (".yaml", ".yml") and len(Path(data).parts) > 1:
        if not Path(data).expanduser().is_file():
            raise UsageError(f"there is no data set file {data}")
        data = str(Path(data).expanduser().resolve())
    overrides: dict[str, Any] = {"model": str(path.resolve()) if path.is_file() else spec}
    overrides |= {"data": data, **options}
    if imgsz is not None:
        overrides["imgsz"] = imgsz
    return YoloFactory(overrides)


def logged_name(name: str) -> str:
    """A metric as Ultralytics' own loggers name it, since trackers take no parentheses."""
    return name.replace("(", "").replace(")", "")


def without_trackers() -> None:
    """Switch every tracker off, in the settings that this process uses."""
    from ultralytics.utils import SETTINGS

    SETTINGS.update({key: False for key in _TRACKERS if key in SETTINGS})


def _require_ultralytics() -> None:
    if find_spec("ultralytics") is None:
        raise MissingExtraError("ultralytics", "yolo")


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
