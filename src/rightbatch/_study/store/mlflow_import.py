"""Runs that other loggers wrote to MLflow: the meaning of their parameters and steps.

Ultralytics' callback, Transformers' `MLflowCallback`, and all others, among them Lightning's
`MLFlowLogger`. None of them logs the number of devices: one is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rightbatch._study.records import Curve, Run
from rightbatch._study.store.history import History, Keep, Numbers, interpolate
from rightbatch._study.store.run_record import RunRecord

BATCH_SIZES = ("batch_size", "train_batch_size")
ACCUMULATIONS = ("accumulate_grad_batches", "gradient_accumulation_steps")
LEARNING_RATES = ("learning_rate", "lr")
SEEDS = ("seed", "random_seed")

EPOCH = "epoch"
"""The name of this metric in Transformers and Lightning."""


@dataclass(frozen=True)
class Facts:
    """What the parameters of a run say; None if unknown. `batch_size` is the effective one."""

    logger: Literal["ultralytics", "transformers", "other"]
    batch_size: int | None
    micro_batch_size: int | None
    seed: int | None
    learning_rate: float | None

    @property
    def keep(self) -> Keep:
        """Ultralytics logs its best weights again at the end, at the step of the last epoch."""
        return "first" if self.logger == "ultralytics" else "last"


def facts(parameters: Mapping[str, str]) -> Facts:
    """Read the parameters of a run of another logger."""
    if {"batch", "nbs", "imgsz"} <= parameters.keys():
        return _of_ultralytics(parameters)
    if "per_device_train_batch_size" in parameters:
        micro = _count(parameters["per_device_train_batch_size"])
        logger: Literal["transformers", "other"] = "transformers"
    else:
        micro = _count(_named(parameters, BATCH_SIZES))
        logger = "other"
    accumulation = _count(_named(parameters, ACCUMULATIONS)) or 1
    return Facts(
        logger,
        batch_size=micro * accumulation if micro else None,
        micro_batch_size=micro,
        seed=_integer(_named(parameters, SEEDS)),
        learning_rate=_number(_named(parameters, LEARNING_RATES)),
    )


def _of_ultralytics(parameters: Mapping[str, str]) -> Facts:
    """Its `batch` is a micro-batch; it accumulates as many as come closest to `nbs`. With
    `optimizer=auto` the learning rate is not logged."""
    micro, nominal = _count(parameters["batch"]), _number(parameters["nbs"])
    rate = None if parameters.get("optimizer") == "auto" else _number(parameters.get("lr0"))
    effective = None
    if micro is not None and nominal is not None:
        effective = micro * max(round(nominal / micro), 1)
    return Facts("ultralytics", effective, micro, _integer(parameters.get("seed")), rate)


class ImportedRun:
    """How another logger's record is read; `names` are the metrics that have a curve.

    Those of the machine are left out, since they have a clock of their own. Seconds are counted
    from the beginning of the run, when each of these loggers begins to train; only a run that was
    copied begins after its values.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record, self._facts = record, facts(record.parameters)
        self.names = [
            name for name in record.latest if name != EPOCH and not name.startswith("system/")
        ]
        self.axes, self.keep = (EPOCH,), self._facts.keep

    def curve(self, name: str, histories: Mapping[str, History]) -> Curve:
        """A metric along a run."""
        history = histories[name]
        stamps = [one.stamps.min() for one in histories.values() if len(one.stamps)]
        steps, examples, epochs = _places(self._facts, histories, history.steps)
        seconds = (history.stamps - min(self._record.started, *stamps)) / 1000
        return Curve(steps, examples, seconds, epochs, history.values)

    def run(self, curves: Mapping[str, Curve]) -> Run:
        """The run; 0 is what the record does not tell."""
        record = self._record
        latest = {name: record.latest[name] for name in self.names}
        ends = {
            name: History(*np.array([[one.step], [one.at], [one.value]]))
            for name, one in record.latest.items()
        }
        last = np.array([max((one.step for one in latest.values()), default=np.nan)], np.float64)
        places = _places(self._facts, ends, last)
        steps, examples, epochs = (np.nan_to_num(one).item() for one in places)
        end = max((one.at for one in latest.values()), default=0)
        return Run(
            id=record.id,
            name=record.name or record.id,
            batch_size=self._facts.batch_size,
            seed=self._facts.seed,
            status=record.status,
            started=record.started / 1000,
            learning_rate=self._facts.learning_rate,
            micro_batch_size=self._facts.micro_batch_size,
            steps=steps,
            examples=examples,
            seconds=max(0, end - record.started) / 1000,
            epochs=epochs,
            parameters=dict(record.parameters),
            metrics={name: one.value for name, one in latest.items()},
            curves=curves,
        )


def _places(
    facts: Facts, histories: Mapping[str, History], steps: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Updates, examples and epochs at the logged steps, NaN if unknown."""
    unknown = np.full(len(steps), np.nan)
    epoch = histories.get(EPOCH)
    if facts.logger == "ultralytics" or _is_step(epoch):
        return unknown, unknown, steps + 1
    size = facts.batch_size or np.nan
    epochs = interpolate(histories, EPOCH, steps)
    if facts.logger == "transformers":
        return steps, steps * size, epochs
    if epoch is None or not _is_integer(epoch):
        return steps, unknown, epochs
    done = steps + 1
    length = _epoch_length(epoch)
    return done, done * size, epochs if length is None else done / length


def _is_step(epoch: History | None) -> bool:
    """Whether the logger's steps are epochs."""
    return epoch is not None and np.array_equal(epoch.steps, epoch.values)


def _is_integer(epoch: History) -> bool:
    """Whether it is the number of the current epoch, as in Lightning, whose first step is 0, and
    not how many are done."""
    return bool(np.all((epoch.values >= 0) & (epoch.values % 1 == 0)))


def _epoch_length(epoch: History) -> float | None:
    """Steps of an epoch; something must have been logged at the last step of one."""
    began = epoch.values > 0
    at_least = np.max((epoch.steps + 1) / (epoch.values + 1))
    at_most = np.min(epoch.steps[began] / epoch.values[began], initial=np.inf)
    return float(at_least) if began.any() and at_least <= at_most else None


def _named(parameters: Mapping[str, str], wanted: tuple[str, ...]) -> str | None:
    """A parameter by its name, or by the last part of a name such as `data/batch_size`."""
    for name in wanted:
        if name in parameters:
            return parameters[name]
        found = {
            value
            for key, value in parameters.items()
            if key.replace(".", "/").rpartition("/")[2] == name
        }
        if len(found) == 1:
            return found.pop()
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _integer(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if number is not None and number == int(number) else None


def _count(text: str | None) -> int | None:
    """A whole number above 0: Ultralytics' -1 and 0.7 are not sizes but request one."""
    number = _integer(text)
    return number if number is not None and number > 0 else None
