"""Stores of runs for tests: an empty database of MLflow's, made once, points to log, runs read."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rightbatch._study.records import Ended, Point, Run, RunKey
from rightbatch._study.store.database import DATABASE, open_client, uri_of
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader


@functools.cache
def empty_database() -> bytes:
    """Making one takes MLflow a second or more."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / DATABASE
        open_client(uri_of(path))
        return path.read_bytes()


def folder_with_database(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATABASE).write_bytes(empty_database())
    return folder


def store_in(folder: Path, title: str = "digits") -> Store:
    """The store of a study that was begun."""
    store = Store.open(folder_with_database(folder), title)
    store.study({"batches": [8]})
    return store


def point(steps: int, batch_size: int = 8, **values: float) -> Point:
    """Of a run of 1,000 examples an epoch that takes 0.5 s a step."""
    examples = steps * batch_size
    return Point(
        steps,
        examples,
        0.5 * steps,
        examples / 1000,
        values or {"loss": 1 / steps, "accuracy": 1 - 1 / steps},
        at=1_700_000_000 + 0.5 * steps,
    )


def finished(store: Store, key: RunKey, steps: Sequence[int] = (1, 2, 3), **how: Any) -> str:
    """MLflow's id of a run that trained so far and ended."""
    log = store.begin(key, {"workload": "digits.py:workload"})
    log.points([point(step, key.batch_size) for step in steps])
    last = point(steps[-1], key.batch_size)
    log.ended(
        Ended(
            how.pop("status", "finished"),
            how.pop("reason", "1 epoch"),
            steps=last.steps,
            examples=int(last.examples),
            seconds=last.seconds,
            epochs=last.epochs,
            **how,
        )
    )
    return log.id


def curve_of(run: Run, name: str) -> dict[str, list[float]]:
    curve = run.curves[name]
    return {key: value.tolist() for key, value in vars(curve).items()}


def only(reader: Reader) -> Run:
    (run,) = reader.runs()
    return run
