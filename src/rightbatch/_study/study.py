"""`study`: train every batch size with every seed, and see what the size does to the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._progress import Live
from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.places import opened
from rightbatch._study.planner import Planner
from rightbatch._study.progress import Notes
from rightbatch._study.records import Run, RunKey, Target
from rightbatch._study.result import StudyResult, result_of
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader
from rightbatch._study.sweep import Sweep
from rightbatch._training.protocol import Training
from rightbatch._training.resolve import resolve
from rightbatch._training.targets import parse_target
from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._worker.wire import header_for
from rightbatch._workload.verb import takes


@takes(StudyOptions)
def study(workload: object, options: StudyOptions, **spec: Any) -> StudyResult:
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
    are a framework's own; any other keyword goes to its spec (`data=`, `imgsz=`).

    Raises:
        UsageError: for an option that cannot be used, or an `out` that holds another study.
        MissingExtraError: without mlflow.
        WorkloadError: if the workload cannot even be loaded.
    """
    training = resolve(workload, **spec)
    config = StudyConfig(
        _name_of(workload),
        options,
        base_batch=options.base_batch or training.base_batch or DEFAULT_BATCH,
        target=None if options.target is None else _target(training, options.target),
    )
    out = Path(options.out).expanduser()
    header = header_for(training, device=options.device, margin=options.margin, seed=0)
    store = Store.open(out, config.workload)
    search = options.search
    with _only_one(out), opened(options.on, header, options.jobs) as place:
        before = store.asked()
        kept = config if before is None else config.joined(before, str(out))
        store.study(kept.to_dict(), target=config.target)
        planner = Planner(config, store)
        keys = config.keys()
        with Reader(out) as reader, _in_order(store):
            judge = None
            if options.prune:
                from rightbatch._study.pruning import Pruner

                judge = Pruner(config.target, reader.runs())
            total = len(keys)
            if search:  # the first trial of a size is one of the runs of its seeds, if it is best
                total += (search - 1) * len(config.batches)
            with Live("study", enabled=options.progress, total=total) as live:
                board = Notes(live, total, options.most_epochs, enabled=options.progress)
                board.done(len(planner.done) if search else sum(k in planner.done for k in keys))
                sweep = Sweep(place, planner.begin, board, jobs=place.jobs, judge=judge)

                def train(wanted: Sequence[RunKey]) -> dict[RunKey, Run]:
                    planner.done |= sweep.run(planner.plans(wanted))
                    return {run.key: run for run in reader.runs() if run.key and run.key in wanted}

                if first := planner.first(keys):
                    planner.decide(train(first).values())
                if search:
                    from rightbatch._study.search import searched

                    done = [run for run in reader.runs() if run.key in planner.done]
                    keys = searched(config, search, train, done)
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


def _target(training: Training, text: str) -> Target:
    """By the name that the metric has in the store, where a framework knows it by others, too."""
    name, value = parse_target(text)
    return Target(training.metric_name(name), value)


def _name_of(workload: object) -> str:
    """What it is called in the store; a file without its folder, which another machine has not."""
    if isinstance(workload, str | Path):
        return Path(str(workload)).name
    name: str = getattr(workload, "__qualname__", type(workload).__name__)
    return name.rpartition(".")[2]
