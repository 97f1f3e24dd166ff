"""A large study that is made up, and written by the project's own store.

Steps to the target follow S = S_min + E_min / B, as McCandlish et al. (2018) have it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._record import say
from benchmarks.study.part import WORK
from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import Ended, Point, RunKey, Target
from rightbatch._study.store.mlflow_writer import Store

SIZES = tuple(8 * 2**power for power in range(10))
METRICS = ("evaluation_loss", "accuracy", "loss", "loss_spread")
TARGET = Target("evaluation_loss", 0.3)
STEPS_MIN, EXAMPLES_MIN = 2500.0, 640_000.0
EPOCH = 50_000  # examples
_LONGER = 1.3  # a run than its way to the target
_BEGAN = 1.75e9
_MADE = "made.json"


@dataclass(frozen=True)
class Shape:
    """Of a study: `seeds` of each of ten sizes, and the points of each run."""

    seeds: int
    points: int

    @property
    def runs(self) -> int:
        return len(SIZES) * self.seeds


def large(shape: Shape) -> tuple[Path, dict[str, Any]]:
    """The study's folder, made unless it is there from before, and what is known of its making."""
    wanted = asdict(shape) | {"mlflow": version("mlflow")}
    folder = WORK / f"large-{shape.runs}-{shape.points}"
    try:
        made = json.loads((folder / _MADE).read_text())
        if made["wanted"] == wanted:
            say(f"the study of {shape.runs} runs is there: {folder}")
            return folder, made
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    _write(folder, shape)
    made = {
        "wanted": wanted,
        "runs": shape.runs,
        "points": shape.points,
        "metrics": METRICS,
        "seconds": time.perf_counter() - began,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }
    (folder / _MADE).write_text(json.dumps(made))
    return folder, made


def _write(folder: Path, shape: Shape) -> None:
    seeds = tuple(range(shape.seeds))
    options = StudyOptions(batches=SIZES, seeds=seeds, epochs=100, out=folder)
    config = StudyConfig("made-up", options, base_batch=16, target=TARGET)
    with Store.open(folder, config.workload) as store:
        store.study(config.to_dict(), target=TARGET)
        for number, key in enumerate(config.keys(), 1):
            log = store.begin(key, {"workload": config.workload, "epochs": options.epochs})
            points = list(_points(key, shape.points))
            log.points(points)
            log.ended(_ended(key, points[-1]))
            if number % 25 == 0 or number == shape.runs:
                say(f"making the study: {number} of {shape.runs} runs")


def _points(key: RunKey, count: int) -> Iterator[Point]:
    size = key.batch_size
    random = np.random.default_rng([size, key.seed])
    to_target = (STEPS_MIN + EXAMPLES_MIN / size) * (1 + random.normal(0, 0.03))
    steps = np.linspace(1, _LONGER * to_target, count).round()
    way = steps / to_target
    loss = 0.02 + 2.3 * np.exp(-2.3 * way)
    values = {
        "evaluation_loss": (loss + 0.05) * (1 + random.normal(0, 0.02, count)),
        "accuracy": 1 - 0.9 * np.exp(-2.2 * way) * (1 + random.normal(0, 0.02, count)),
        "loss": loss * (1 + random.normal(0, 0.05, count)),
        "loss_spread": (0.1 + loss) / size**0.5 * (1 + random.normal(0, 0.05, count)),
    }
    seconds = steps * (0.004 + 0.0001 * size)
    for place, step in enumerate(steps.tolist()):
        at = {name: float(array[place]) for name, array in values.items()}
        examples, second = step * size, float(seconds[place])
        yield Point(int(step), examples, second, examples / EPOCH, at, _BEGAN + second)


def _ended(key: RunKey, last: Point) -> Ended:
    return Ended(
        "finished",
        "100 epochs",
        micro_batch_size=min(key.batch_size, 256),
        steps=last.steps,
        examples=int(last.examples),
        seconds=last.seconds,
        epochs=last.epochs,
        learning_rate=0.01 * key.batch_size**0.5,
        peak_bytes=2**28 + key.batch_size * 2**21,
        limit_bytes=16 * 2**30,
        device="cpu",
        metrics=dict(last.values),
    )
