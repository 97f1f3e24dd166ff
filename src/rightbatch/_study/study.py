"""`study`: train every batch size with every seed, and see what the size does to the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._progress import Live
from rightbatch._study.config import UNBOUNDED, Asked
from rightbatch._study.places import opened
from rightbatch._study.planner import Planned
from rightbatch._study.progress import Notes
from rightbatch._study.records import Run, RunKey, Target
from rightbatch._study.result import StudyResult, result_of
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader
from rightbatch._study.sweep import Sweep
from rightbatch._training.targets import parse_target
from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._units import parse_bytes, parse_seconds
from rightbatch._worker.wire import header_for
from rightbatch._workload.factory import resolve


def study(
    workload: object,
    *,
    batches: Sequence[int],
    seeds: int | Sequence[int] = 3,
    out: str | Path,
    epochs: int | None = None,
    target: str | None = None,
    budget: float | str | None = None,
    rule: str = "scaling",
    learning_rates: Sequence[float] = (1.0,),
    search: int = 0,
    base_batch: int | None = None,
    noise_scale: float | None = None,
    micro_batch: int | str = "auto",
    prune: bool = False,
    sharpness: bool = False,
    processes: int = 1,
    jobs: int = 1,
    on: str | None = None,
    memory: int | str | None = None,
    margin: float = 0.05,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> StudyResult:
    """Train a workload at each of the `batches`, with so many `seeds` (or these), and compare.

    Every run has a process of its own; memory that runs out, a loss that is no number and a crash
    are results. Runs are kept in `out` (in MLflow, `OUT/mlflow.db`); called again, it goes on where
    it ended, and more sizes and seeds may join.

    A run ends after `epochs`, at the `target` (`"evaluation_loss=0.3"`), or after a `budget` of
    training, whichever comes first. The learning rate is the workload's own, which was chosen for
    `base_batch` (16, or what a framework's is), by `rule`: `"scaling"` for the batch size (for SGD
    it depends on the noise scale, which a run at the base size shows, or which is given), or
    `"none"`; times each of `learning_rates`, or times what a `search` of so many trials finds for
    each size (Optuna). `prune` ends runs that have no hope (Optuna's median rule).

    `processes` train each run together, `jobs` runs go on at a time, `on="ray"` trains them on a
    Ray cluster. `sharpness` also measures the Hessian's largest eigenvalue now and then. `settings`
    are a framework's own, `options` those of its spec (`data=`, `imgsz=`).

    Raises:
        UsageError: for what cannot be meant, or an `out` that holds another study.
        MissingExtraError: without mlflow.
        WorkloadError: if the workload cannot even be loaded.
    """
    factory = resolve(workload, **options)
    asked = Asked(
        workload=_name_of(workload),
        batches=tuple(batches),
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        epochs=_epochs(epochs, target, budget),
        target=None if target is None else _target(factory, target),
        seconds=None if budget is None else parse_seconds(budget),
        rule=rule,
        learning_rates=tuple(learning_rates),
        base_batch=base_batch or int(getattr(factory, "base_batch", DEFAULT_BATCH)),
        noise_scale=noise_scale,
        micro_batch=micro_batch,
        processes=processes,
        memory=None if memory is None else parse_bytes(memory),
        margin=margin,
        settings=settings,
    )
    if search and len(asked.learning_rates) > 1:
        raise UsageError("learning rates are searched for, or given: not both")
    out = Path(out).expanduser()
    header = header_for(factory, device=device, margin=margin, seed=0)
    store = Store.open(out, asked.workload)
    with _only_one(out), opened(on, header, jobs) as place:
        before = store.asked()
        kept = asked if before is None else asked.joined(before, str(out))
        store.study(kept.to_dict(), target=asked.target)
        planned = Planned(asked, store, sharpness=sharpness)
        keys = asked.keys()
        with Reader(out) as reader, _in_order(store):
            judge = None
            if prune:
                from rightbatch._study.pruning import Pruner

                judge = Pruner(asked.target, reader.runs())
            total = len(keys)
            if search:  # the first trial of a size is one of the runs of its seeds, if it is best
                total += (search - 1) * len(asked.batches)
            with Live("study", enabled=progress, total=total) as live:
                board = Notes(live, total, asked.epochs, enabled=progress)
                board.done(len(planned.done) if search else sum(k in planned.done for k in keys))
                sweep = Sweep(place, planned.begin, board, jobs=place.jobs, judge=judge)

                def train(wanted: Sequence[RunKey]) -> dict[RunKey, Run]:
                    planned.done |= sweep.run(planned.plans(wanted))
                    return {run.key: run for run in reader.runs() if run.key and run.key in wanted}

                if first := planned.first(keys):
                    planned.decide(train(first).values())
                if search:
                    from rightbatch._study.learning_rate_search import search_learning_rates

                    done = [run for run in reader.runs() if run.key in planned.done]
                    keys = search_learning_rates(asked, search, train, done)
                train(keys)
            store.finish()
            return result_of(reader, str(out))


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Two sweeps of one folder would train the same runs twice."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(out / "sweep.lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"another sweep is at work in {out}; wait for it, or take another --out"
        ) from None


@contextmanager
def _in_order(store: Store) -> Iterator[None]:
    """Whatever ends the sweep, nothing seems to train on; after Ctrl-C it is said how to go on."""
    try:
        yield
    except BaseException as error:
        with suppress(RightbatchError):  # the store may be what has failed
            store.abandon("the sweep was ended")
            store.finish()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                "interrupted; what has ended is kept, and the same command goes on"
            ) from None
        raise


def _epochs(epochs: int | None, target: str | None, budget: float | str | None) -> int:
    if epochs is not None:
        return epochs
    if target is None and budget is None:
        raise UsageError("say when a run is over: epochs, a target such as loss=0.3, or a budget")
    return UNBOUNDED


def _target(factory: Any, text: str) -> Target:
    """By the name that the metric has in the store, where a framework knows it by others, too."""
    name, value = parse_target(text)
    named: Callable[[str], str] = getattr(factory, "metric_name", str)
    return Target(named(name), value)


def _name_of(workload: object) -> str:
    """What it is called in the store; a file without its folder, which another machine has not."""
    if isinstance(workload, str | Path):
        return Path(str(workload)).name
    name: str = getattr(workload, "__qualname__", type(workload).__name__)
    return name.rpartition(".")[2]
