"""`run`: any command, unchanged, with a report of its memory and its batch at the end."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rightbatch._errors import UsageError
from rightbatch._json import to_json
from rightbatch._progress import Live
from rightbatch._run.options import RunOptions
from rightbatch._training.protocol import Ability, require
from rightbatch._training.resolve import resolve
from rightbatch._training.watched import Watched, WatchRequest
from rightbatch._units import format_bytes, format_step, parse_bytes
from rightbatch._workload.verb import takes

if TYPE_CHECKING:
    from rightbatch._run.report import RunReport

_RECENT = 50  # steps whose median time is shown


@takes(RunOptions)
def run(workload: object, options: RunOptions, **spec: object) -> RunReport:
    """Run a command as it stands, and report what its training does.

    `workload` is a `rightbatch.Command`, or text `"-- python train.py"`. Input, output, signals and
    exit code are the command's own; its training is the same, bit for bit. The report has the time
    of a step, the share of waiting for data, the peak memory, the batch sizes that would fit, and
    the noise scale where the command accumulates or runs on several devices. With `steps` the
    command is ended after that many. With `to="mlflow"` the run is kept in MLflow's store. `memory`
    is the limit that `largest_batch_size` is about.

    Raises:
        UsageError: if nothing of the command can be seen, `report` is in no folder, or MLflow
            refuses.
        MissingExtraError: without MLflow, for `to="mlflow"`.
    """
    training = resolve(workload, **spec)
    require(training, Ability.WATCH, "run")
    if options.report is not None and not Path(options.report).absolute().parent.is_dir():
        raise UsageError(f"there is no folder for the report {options.report}; make it first")
    kept = None
    if options.to == "mlflow":  # before the command runs: it may be refused
        from rightbatch._run.mlflow_run import MlflowRun

        kept = MlflowRun()
    memory = None if options.memory is None else parse_bytes(options.memory)
    with Live("rightbatch", enabled=options.progress, plain=True) as live:

        def show(watched: Watched) -> None:
            live.show(_line(watched))

        request = WatchRequest(options.steps, show, options.stdout_to_stderr)
        watched = training.watch(request)
    from rightbatch._run.report import report_of  # imports torch, which the command need not await

    report = report_of(watched, margin=options.margin, memory=memory)
    if options.report is not None:
        Path(options.report).write_text(to_json(report.to_dict(), indent=2) + "\n")
    if kept is not None:
        kept.keep(str(training), watched, report)
    return report


def _line(watched: Watched) -> str:
    """Return what was seen so far, in a line."""
    parts = [f"batch {watched.batch_size or 'unknown'}", f"{watched.steps} steps"]
    if watched.step_seconds:
        parts[-1] += f", {format_step(median(watched.step_seconds[-_RECENT:]))} each"
    if watched.losses:
        parts.append(f"loss {watched.losses[-1][1]:.4g}")
    if watched.peak_bytes is not None:
        parts.append(f"peak {format_bytes(watched.peak_bytes)}")
    return " · ".join(parts)
