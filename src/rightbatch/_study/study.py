"""`study`: train every batch size with every seed, and compare the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
    """Train a workload at each of the `batches` with each of the `seeds`, and compare.

    `seeds` is a number of seeds, or the seeds themselves. Every run has its own process, so an
    out-of-memory error, a loss that is not finite and a crash are results. Runs are stored in
    `out` (in MLflow, `OUT/mlflow.db`). A second call continues the study; batch sizes, seeds and
    learning rates may be added.

    A run ends after `epochs` or `steps`, at the `target` (`"evaluation_loss=0.3"`), or after a
    `budget` of training time, whichever comes first. A `Command` with `{batch}` and `{seed}` in it
    also ends by itself, and `metrics` (`["accuracy=acc: (.+)"]`) are read from its output.

    The workload's own learning rate was chosen for `base_batch` (16, or the framework's). The
    `rule` `"scaling"` scales it with the batch size (for SGD by the `noise_scale`; if it is not
    given, a run at the base size measures it); `"none"` keeps it. The result is multiplied by each
    of `learning_rates`, or by the best factor of `search` trials for each size (Optuna). `prune`
    stops runs that are clearly behind the others (Optuna's median rule).

    `processes` train each run together, `jobs` runs train at a time, `on="ray"` trains them on a
    Ray cluster. `sharpness` also measures the Hessian's largest eigenvalue from time to time.
    `settings` are a framework's own; any other keyword goes to its spec (`data=`, `imgsz=`).

    Raises:
        UsageError: for an option that cannot be used, or an `out` that holds another study.
        MissingExtraError: if mlflow is not installed.
        WorkloadError: if the workload cannot be loaded.
    """
    training = resolve(workload, **spec)
    own_place = training.place
    if own_place is None:
        options.check_that_runs_end()
    if own_place is None and options.metrics:
        raise UsageError(
            f"metrics are read from a command's output; {training.integration} returns its own "
            "from its evaluation"
        )
    if own_place is not None and options.on is not None:
        raise UsageError(f"{training.integration} is not trained on {options.on!r}; leave --on out")
    config = StudyConfig(
        training.title or _name_of(workload),
        options,
        base_batch=options.base_batch or training.base_batch or DEFAULT_BATCH,
        target=None if options.target is None else _target(training, options.target),
        command=None if own_place is None else str(training),
    )
    out = Path(options.out).expanduser()
    header = header_for(training, device=options.device, margin=options.margin, seed=0)
    search = options.search
    with ExitStack() as stack:
        place = stack.enter_context(opened(options.on or own_place, header, options))
        store = Store.open(out, config.workload)
        stack.enter_context(_locked(out))
        before = store.asked()
        kept = config if before is None else config.joined(before, str(out))
        store.study(kept.to_dict(), target=config.target)
        planner = Planner(config, store)
        keys = config.keys()
        with Reader(out) as reader, _closed_on_error(store):
            judge = None
            if options.prune:
                from rightbatch._study.pruning import Pruner

                judge = Pruner(config.target, reader.runs())
            total = len(keys)
            if search:  # the first trial of a size is one of the runs of its seeds, if it is best
                total += (search - 1) * len(config.batches)
            with Live("study", enabled=options.progress, total=total) as live:
                epochs = options.most_epochs if own_place is None else None
                board = Notes(live, total, epochs, enabled=options.progress)
                board.done(len(planner.done) if search else sum(k in planner.done for k in keys))
                sweep = Sweep(place, planner.begin, board, jobs=place.jobs, judge=judge)

                def train(wanted: Sequence[RunKey]) -> dict[RunKey, Run]:
                    planner.done |= sweep.run(planner.plans(wanted))
                    return {run.key: run for run in reader.runs() if run.key and run.key in wanted}

                if first := planner.first(keys):
                    planner.decide(train(first).values())
                if search:
                    from rightbatch._study.learning_rate_search import search_learning_rates

                    done = [run for run in reader.runs() if run.key in planner.done]
                    keys = search_learning_rates(config, search, train, done)
                train(keys)
            store.finish()
            return result_of(reader, str(out))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lock the folder: two sweeps of one folder would train the same runs twice."""
    from filelock import FileLock, Timeout

    lock = out / "sweep.lock"
    if lock.is_symlink():
        raise UsageError(f"{lock} is a link; remove it, or choose another --out")
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"another sweep is running in {out}; wait for it, or choose another --out"
        ) from None


@contextmanager
def _closed_on_error(store: Store) -> Iterator[None]:
    """Mark unfinished runs as stopped on any error; the message of Ctrl-C says how to continue."""
    try:
        yield
    except BaseException as error:
        with suppress(RightbatchError):  # the store itself may have failed
            store.abandon("the sweep was stopped")
            store.finish()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                "interrupted; finished runs are kept, and the same command continues the study"
            ) from None
        raise


def _target(training: Training, text: str) -> Target:
    """Parse a target, and translate its metric to the name in the store."""
    name, value = parse_target(text)
    return Target(training.metric_name(name), value)


def _name_of(workload: object) -> str:
    """Return the name for the store: of a file without its folder, which differs by machine."""
    if isinstance(workload, str | Path):
        return Path(str(workload)).name
    name: str = getattr(workload, "__qualname__", type(workload).__name__)
    return name.rpartition(".")[2]
