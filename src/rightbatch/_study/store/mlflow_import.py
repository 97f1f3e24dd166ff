"""Runs that other loggers wrote to MLflow: what their parameters and steps mean.

Ultralytics' callback, Transformers' `MLflowCallback`, and all others, of which Lightning's
`MLFlowLogger` is one. None of them logs how many devices there were: one is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rightbatch._study.records import Curve, Run
from rightbatch._study.store.metric_history import Counts, History, Numbers, joined
from rightbatch._study.store.mlflow_runs import Latest, status_of

BATCH_SIZES = ("batch_size", "train_batch_size")
ACCUMULATIONS = ("accumulate_grad_batches", "gradient_accumulation_steps")
LEARNING_RATES = ("learning_rate", "lr")
SEEDS = ("seed", "random_seed")

EPOCH = "epoch"
"""The metric in which Transformers and Lightning log it."""


@dataclass(frozen=True)
class Facts:
    """What parameters tell of a run; None where they do not. `batch_size` is the effective one."""

    logger: Literal["ultralytics", "transformers", "other"]
    batch_size: int | None
    micro_batch_size: int | None
    seed: int | None
    learning_rate: float | None

    @property
    def counts(self) -> Counts:
        """Ultralytics logs its best weights at the end, at the step of the last epoch."""
        return "first" if self.logger == "ultralytics" else "last"


def facts(parameters: Mapping[str, str]) -> Facts:
    """Reads the parameters of a run that is not ours."""
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
        seed=_whole(_named(parameters, SEEDS)),
        learning_rate=_number(_named(parameters, LEARNING_RATES)),
    )


def _of_ultralytics(parameters: Mapping[str, str]) -> Facts:
    """Its `batch` is a micro-batch, of which it accumulates as many as come nearest to `nbs`. An
    `optimizer` that is `auto` has a learning rate that is not logged."""
    micro, nominal = _count(parameters["batch"]), _number(parameters["nbs"])
    rate = None if parameters.get("optimizer") == "auto" else _number(parameters.get("lr0"))
    effective = None
    if micro is not None and nominal is not None:
        effective = micro * max(round(nominal / micro), 1)
    return Facts("ultralytics", effective, micro, _whole(parameters.get("seed")), rate)


def names(latest: Mapping[str, Latest]) -> list[str]:
    """The metrics that have a curve: those of the machine are on a clock of their own."""
    return [name for name in latest if name != EPOCH and not name.startswith("system/")]


def curve(facts: Facts, started: float, name: str, histories: Mapping[str, History]) -> Curve:
    """A metric along a run, whose clock begins at `started`, Unix time: each of these loggers
    begins its run when the training begins. Only a run that was copied began after its values."""
    history = histories[name]
    stamps = [one.stamps.min() for one in histories.values() if len(one.stamps)]
    steps, examples, epochs = _places(facts, histories, history.steps)
    seconds = (history.stamps - min(started * 1000, *stamps)) / 1000
    return Curve(steps, examples, seconds, epochs, history.values)


def run(run: Any, latest: Mapping[str, Latest], curves: Mapping[str, Curve]) -> Run:
    """What MLflow's run tells; 0 is what it does not."""
    known = facts(run.data.params)
    told = {name: latest[name] for name in names(latest)}
    ends = {
        name: History(*np.array([[one.step], [one.at], [one.value]]))
        for name, one in latest.items()
    }
    last = np.array([max((one.step for one in told.values()), default=np.nan)], np.float64)
    steps, examples, epochs = (np.nan_to_num(one).item() for one in _places(known, ends, last))
    started = run.info.start_time / 1000
    return Run(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        batch_size=known.batch_size,
        seed=known.seed,
        status=status_of(run),
        started=started,
        learning_rate=known.learning_rate,
        micro_batch_size=known.micro_batch_size,
        steps=steps,
        examples=examples,
        seconds=max(0.0, max((one.at for one in told.values()), default=0) / 1000 - started),
        epochs=epochs,
        parameters=dict(run.data.params),
        metrics={name: one.value for name, one in told.items()},
        curves=curves,
    )


def _places(
    facts: Facts, histories: Mapping[str, History], steps: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Updates, examples and epochs at the steps that were logged, NaN where nothing tells."""
    untold = np.full(len(steps), np.nan)
    told = histories.get(EPOCH)
    if facts.logger == "ultralytics" or _is_step(told):
        return untold, untold, steps + 1
    size = facts.batch_size or np.nan
    epochs = joined(histories, EPOCH, steps)
    if facts.logger == "transformers":
        return steps, steps * size, epochs
    if told is None or not _is_whole(told):
        return steps, untold, epochs
    done = steps + 1
    length = _epoch_length(told)
    return done, done * size, epochs if length is None else done / length


def _is_step(epoch: History | None) -> bool:
    """Whether a logger's steps are epochs."""
    return epoch is not None and np.array_equal(epoch.steps, epoch.values)


def _is_whole(epoch: History) -> bool:
    """Whether it is the epoch that a run is in, as with Lightning, whose first step is 0, and not
    how many are done."""
    return bool(np.all((epoch.values >= 0) & (epoch.values % 1 == 0)))


def _epoch_length(epoch: History) -> float | None:
    """Steps of an epoch, given that something was logged at the last step of one."""
    began = epoch.values > 0
    at_least = np.max((epoch.steps + 1) / (epoch.values + 1))
    at_most = np.min(epoch.steps[began] / epoch.values[began], initial=np.inf)
    return float(at_least) if began.any() and at_least <= at_most else None


def _named(parameters: Mapping[str, str], wanted: tuple[str, ...]) -> str | None:
    """A parameter by its own name, or by the last part of one such as `data/batch_size`."""
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


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if number is not None and number == int(number) else None


def _count(text: str | None) -> int | None:
    """A whole number above 0: Ultralytics' -1 and 0.7 are not sizes, but ask for one."""
    number = _whole(text)
    return number if number is not None and number > 0 else None
