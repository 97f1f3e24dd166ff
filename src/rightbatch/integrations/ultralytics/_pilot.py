"""A short training through Ultralytics, with the noise scale late in it; for a probe's process."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import autocast

from rightbatch._noise import Part
from rightbatch._tune.pilot import Pilot, PilotPlan, PilotReport, facts

if TYPE_CHECKING:
    from rightbatch.integrations.ultralytics._factory import YoloFactory

_NOTE = "YOLO's loss divides by a sum over the micro-batch, so parts are not exactly the whole"


class _Over(Exception):
    """Ends Ultralytics' training where we have what we want."""


class YoloPilot:
    """Sits in a trainer's callbacks; `report` is there when `_Over` has been raised."""

    def __init__(self, trainer: Any, plan: PilotPlan, show: Callable[[str], object]) -> None:
        self._trainer, self._plan = trainer, plan
        self._random = random.Random(plan.seed)
        self._batches = 0
        self._pilot = Pilot(self, plan, show)

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self._trainer.model
        return model

    @property
    def population(self) -> int | None:
        data = self._trainer.train_loader.dataset
        return None if data.augment else len(data)

    @property
    def report(self) -> PilotReport:
        return self._pilot.report

    def after_batch(self, trainer: Any) -> None:
        self._batches += 1
        if self._batches % max(int(trainer.accumulate), 1) == 0:
            images = trainer.batch_size * max(int(trainer.accumulate), 1)
            if self._pilot.after_step(float(trainer.loss) / trainer.batch_size, images):
                raise _Over

    def parts(self) -> Iterator[Part]:
        data, size = self._trainer.train_loader.dataset, self._trainer.batch_size
        while True:
            order = self._random.sample(range(len(data)), len(data))
            for start in range(0, len(order) - size + 1, size):
                items = [data[index] for index in order[start : start + size]]
                yield partial(self._loss, data.collate_fn(items)), size, float(size)

    def evaluate(self) -> Mapping[str, float]:
        metrics, _ = self._trainer.validate()
        return metrics or {}

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        trainer = self._trainer
        with autocast(trainer.amp, device=trainer.device.type):
            batch = trainer.preprocess_batch(batch)
            losses, _ = trainer.model(batch)
            mean: Tensor = losses.sum() / len(batch["img"])
        return mean


def run_pilot(
    factory: YoloFactory, device: str, plan: PilotPlan, show: Callable[[str], object]
) -> PilotReport:
    """Train as `factory` says, an update every `plan.batch_size` images, until the time is up."""
    micro = min(plan.micro_batch_size, plan.batch_size)
    arguments = {key: value for key, value in factory.overrides.items() if key != "model"}
    arguments |= {
        "batch": micro,
        "nbs": plan.batch_size,
        "epochs": plan.epochs,  # by which optimizer=auto chooses
        "device": device.removeprefix("cuda:"),
        "seed": plan.seed,
        "val": False,
        "save": False,
        "plots": False,
        "verbose": False,
        "exist_ok": True,
    }
    pilots: list[YoloPilot] = []
    model = YOLO(factory.overrides["model"])

    def begin(trainer: Any) -> None:
        trainer.epochs = 10_000  # the pilot ends it
        pilots.append(YoloPilot(trainer, plan, show))

    model.add_callback("on_train_start", begin)
    model.add_callback("on_train_batch_end", lambda t: pilots[-1].after_batch(t))
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.train(**arguments, project=folder, name="pilot")
        except _Over:
            pass
    report = pilots[-1].report
    report.notes.append(_NOTE)
    trainer = model.trainer
    about = {"workers": trainer.args.workers, "precision": None, "drop_last": False}
    report.facts = facts(trainer.model, trainer.optimizer, **about)
    return report
