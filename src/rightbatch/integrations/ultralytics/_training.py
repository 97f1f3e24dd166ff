"""A YOLO model, its data and its training arguments as a `Training`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._training.protocol import Ability, LoopPlan, Observer, Session, Training
from rightbatch.integrations.ultralytics._arguments import check_names
from rightbatch.integrations.ultralytics._cfg_file import cfg_arguments
from rightbatch.integrations.ultralytics._data import found_data
from rightbatch.integrations.ultralytics._isolation import isolate
from rightbatch.integrations.ultralytics._metrics import full_name

if TYPE_CHECKING:
    from rightbatch._training.distributed import Processes
    from rightbatch.integrations.ultralytics._loop import UltralyticsLoop

FAMILIES = ("yolo", "rtdetr")
"""Prefixes of the names of Ultralytics' models."""
_NOMINAL_BATCH = 64


@dataclass(frozen=True)
class UltralyticsTraining(Training):
    """The training with `overrides`, the arguments of `YOLO.train`; picklable.

    A script also passes `live`, its trainer class and model, pickled separately so that ultralytics
    is not imported before `load`; and `settings`, its Ultralytics settings.
    """

    overrides: dict[str, Any]
    live: bytes | None = field(default=None, repr=False)
    settings: dict[str, Any] | None = field(default=None, repr=False)

    integration = "Ultralytics' trainer"
    abilities = frozenset(
        {Ability.STEP, Ability.EVALUATE, Ability.FOLLOW, Ability.LOOP, Ability.SETTINGS}
    )
    loss_may_rise = True

    @property
    def base_batch(self) -> int:
        """The batch size that Ultralytics' learning rates are for."""
        return int(self.overrides.get("nbs", _NOMINAL_BATCH))

    def metric_name(self, name: str) -> str:
        """Return `metrics/mAP50B` for `mAP50` and for `metrics/mAP50(B)`."""
        return full_name(name)

    def load(self) -> UltralyticsTraining:
        """Import ultralytics with separate settings, so that no file of the user is written."""
        isolate(self.settings)
        return self

    def session(self, device: str, *, seed: int, inference: bool) -> Session:
        """Open Ultralytics' trainer, set up as for `train`; call `load` first."""
        from rightbatch.integrations.ultralytics._session import UltralyticsSession

        return UltralyticsSession(self.overrides, self.live, device, inference=inference)

    def refused_folder(self, out: Path, *, resume: bool) -> str | None:
        """Refuse a folder with weights, which Ultralytics would replace, and to resume."""
        last, best = (out / "weights" / name for name in ("last.pt", "best.pt"))
        if resume and last.is_file():
            return (
                "train --resume cannot continue a training of Ultralytics; its own command can, at "
                f"the next epoch and with the same batch: yolo train resume model={last}"
            )
        if resume:
            return f"there is no training to resume: {last} does not exist"
        if last.exists() or best.exists():
            return f"{out} holds a training, whose weights would be replaced: choose another --out"
        return None

    @contextmanager
    def loop(
        self, plan: LoopPlan, processes: Processes, observers: Sequence[Observer]
    ) -> Iterator[UltralyticsLoop]:
        """Open a training by Ultralytics' trainer; it writes its files to `plan.out`, if given."""
        from rightbatch.integrations.ultralytics._loop import UltralyticsLoop

        yield UltralyticsLoop(self.overrides, plan, processes, observers)


def from_spec(
    spec: str, *, data: str | Path | None = None, imgsz: int | None = None, **options: Any
) -> UltralyticsTraining | None:
    """Return a training for `yolo26n.yaml`, `yolo26n.pt` and the like; None for other names.

    `options` are other arguments of `YOLO.train`; those in a file `cfg` count where they are not
    given here.

    Raises:
        UsageError: without `data`, if it does not exist, or for an unknown option.
        MissingExtraError: if ultralytics is not installed.
    """
    path = Path(spec).expanduser()
    if path.suffix not in (".yaml", ".yml", ".pt"):
        return None
    if not path.stem.lower().startswith(FAMILIES) and not path.is_file():
        return None
    require_ultralytics()
    check_names(options)
    if (cfg := options.pop("cfg", None)) is not None:
        options = cfg_arguments(cfg) | options
        in_file = (options.pop("data", None), options.pop("imgsz", None))
        data, imgsz = (in_file[0] if data is None else data), (imgsz or in_file[1])
    if data is None:
        raise UsageError(
            f"{spec} needs a data set: --data DATA.yaml, or for classification the folder that has "
            "train and val (data= in Python)"
        )
    overrides: dict[str, Any] = {"model": str(path.resolve()) if path.is_file() else spec}
    overrides |= {"data": found_data(data, options.get("split")), **options}
    if imgsz is not None:
        overrides["imgsz"] = imgsz
    return UltralyticsTraining(overrides)


def require_ultralytics() -> None:
    """Raise `MissingExtraError` unless ultralytics is installed."""
    if find_spec("ultralytics") is None:
        raise MissingExtraError("ultralytics", "yolo")
