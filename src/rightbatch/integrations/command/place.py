"""Where a study trains the runs of a command: each run is the command itself."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch._errors import UsageError
from rightbatch._study.options import StudyOptions
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent, threads_of
from rightbatch._worker.wire import Header
from rightbatch.integrations.command.command_output import OutputNumbers
from rightbatch.integrations.command.launch import agent_settings, environment, start, without_agent
from rightbatch.integrations.command.listener import Listener
from rightbatch.integrations.command.observed import Observed
from rightbatch.integrations.command.process_tree import ProcessTree, set_subreaper
from rightbatch.integrations.command.reaper import Reaper
from rightbatch.integrations.command.run_end import RunEnd, ended_of
from rightbatch.integrations.command.run_points import RunPoints
from rightbatch.integrations.command.run_rates import RunRates
from rightbatch.integrations.command.run_reader import RunReader
from rightbatch.integrations.command.study_checks import check_study

if TYPE_CHECKING:
    from rightbatch.integrations.command.command import Command


def place(header: Header, *, study: StudyOptions) -> CommandPlace:
    """Return the place for the runs of a command.

    Args:
        header: whose subject is the `Command`.
        study: the options of the study.

    Raises:
        UsageError: for options that have no meaning for a command, and placeholders it lacks.
    """
    command: Command = pickle.loads(header.subject)
    check_study(command.template, study)
    return CommandPlace(command, study.jobs)


class CommandPlace:
    """Runs the command to its end, or to the study's steps, budget or target; then it is ended.

    Its output is kept in `OUT/runs/NAME.log`; `{out}` is the folder `OUT/runs/NAME`. Each attempt
    at a run has names of its own. After a kill of this process the command is ended by its agents.
    """

    def __init__(self, command: Command, jobs: int) -> None:
        self.jobs = jobs
        self._command, self._threads = command, threads_of(jobs)
        self._stopped = threading.Event()
        # Set here for all runs: each run's process tree restores what it finds.
        self._was_subreaper = set_subreaper(True)

    def stop(self) -> None:
        """See `Place`; the threads of the runs end their processes."""
        self._stopped.set()
        if self._was_subreaper is False:
            set_subreaper(False)

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        """See `Place`."""
        folder = Path(plan.options.out).expanduser().resolve() / "runs"
        rates = RunRates(self._command, folder / "optimizer.json")
        rate = rates.rate_of(plan)
        files = RunFiles.create(folder, plan.key.name)
        template = self._command.template
        values = {"batch": plan.key.batch_size, "seed": plan.key.seed, "out": files.folder}
        if rate is None:
            template = template.without("learning_rate")
        else:
            values["learning_rate"] = f"{rate:.6g}"
        if "out" in template.names:
            files.folder.mkdir(exist_ok=True)
        arguments = template.filled(values)
        patterns = plan.options.metric_patterns
        points = RunPoints(plan.key.batch_size, logs_loss="loss" not in patterns)
        end = RunEnd(plan)
        observed = Observed()
        numbers = OutputNumbers(files.log, patterns)
        variables = {"PYTHONUNBUFFERED": "1"}  # else numbers would be printed long after their step
        if self._threads is not None:
            variables["OMP_NUM_THREADS"] = str(self._threads)
        with (
            files.log.open("wb") as output,
            Listener() as listener,
            Reaper(listener.secret, [listener.folder]) as reaper,
        ):
            listener.on_agent = reaper.hold
            steps = plan.options.steps or 0
            settings = agent_settings(
                listener,
                trial=False,
                steps=steps,
                ends_with_parent=True,
                batch=plan.key.batch_size,
            )
            process = start(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(settings, variables),
                start_new_session=os.name == "posix",  # Ctrl-C is for this process
            )
            try:
                with ProcessTree(process.pid, listener.secret) as tree:
                    reader = RunReader(process, listener, tree, numbers, observed, points)
                    for found in reader.points(end, self._stopped):
                        yield RunEvent(points=found)
            finally:
                if process.poll() is None:
                    process.kill()
                code = process.wait()
        if self._stopped.is_set():
            return
        rates.learn(plan, observed, rate)
        if code == 0 and not end.reason and not observed.has_torch:
            raise UsageError(f"nothing of the command was seen: {without_agent(arguments)}")
        if last := end.take(points.take(observed, is_over=True)):
            yield RunEvent(points=last)
        ended = ended_of(observed, arguments, code, files.log, points, end, numbers, rate)
        yield RunEvent(ended=ended)


@dataclass(frozen=True)
class RunFiles:
    """Where an attempt at a run keeps its files."""

    folder: Path
    log: Path

    @classmethod
    def create(cls, runs: Path, name: str) -> RunFiles:
        """Create the log of a new attempt: an earlier one may have left a part of a training."""
        runs.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            unique = name if attempt == 1 else f"{name}-attempt_{attempt}"
            with suppress(FileExistsError):
                (runs / f"{unique}.log").open("x").close()
                return cls(runs / unique, runs / f"{unique}.log")
        raise AssertionError
