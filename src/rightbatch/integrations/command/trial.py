"""A trial: a command that runs until its training has made so many steps, and is then ended.

Nothing of it is left: no process, and no file in its temporary folders. A trial that would change a
file of the user's ends before it does.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rightbatch._device.out_of_memory import died_out_of_memory
from rightbatch._worker.failure import Failure, Outcome
from rightbatch.integrations.command.launch import (
    TRACKERS_OFF,
    agent_settings,
    environment,
    start,
)
from rightbatch.integrations.command.listener import Listener
from rightbatch.integrations.command.observed import Observed
from rightbatch.integrations.command.process_tree import ProcessTree
from rightbatch.integrations.command.reaper import Reaper
from rightbatch.integrations.command.template import hide_secrets

_POLL = 0.05  # seconds
_SAMPLE = 0.1  # seconds between two looks at the memory of loader workers
_QUIET = 1.0  # seconds that messages of processes which have ended may still take
_NOISE = 0.1  # share of the time that gradients may be looked at, where a trial is for that
_OUTPUT = 20_000  # characters of the command's own output that are kept


@dataclass(frozen=True)
class TrialPlan:
    """How long a trial runs, and what it may use.

    It ends after `steps` steps, with `until_evaluation` not before an evaluation and one more step;
    without a number of steps when the run is enough. Then its gradients are observed as well, which
    needs memory of its own.
    `memory` (bytes; on the CPU at most `free`) less `margin` is enforced where the platform can.
    `folders` may be written to, and the files in `made` that have not changed since their time (in
    nanoseconds). `variables` are added to the environment. `batch` is the size that stands in the
    command.
    """

    steps: int | None
    batch: int | None = None
    memory: int | None = None
    free: int | None = None
    margin: float = 0.0
    until_evaluation: bool = False
    folders: tuple[str, ...] = ()
    made: Mapping[str, int] = field(default_factory=dict)
    variables: Mapping[str, str] | None = None


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended, and what its agents saw.

    `failure` is the command's own error. `other_bytes` is the largest memory of the processes that
    do not train (loader workers), `output` the end of what the command printed.
    """

    outcome: Outcome
    observed: Observed
    failure: Failure | None
    other_bytes: int
    seconds: float
    output: str
    exit_code: int | None
    left: tuple[int, ...] = ()


def run_trial(
    command: Sequence[str],
    plan: TrialPlan,
    is_enough: Callable[[Observed], bool] = lambda observed: False,
) -> TrialResult:
    """Run a command until its training has made the plan's steps, is enough, or ends by itself."""
    started_at = time.perf_counter()
    observed, other_bytes = Observed(), 0
    with (
        tempfile.TemporaryDirectory(prefix="rightbatch-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as output,
        Listener() as listener,
        Reaper(listener.secret, [listener.folder, folder, *plan.folders]) as reaper,
    ):
        listener.on_agent = reaper.hold
        made = Path(folder) / "made.json"
        made.write_text(json.dumps(dict(plan.made)), encoding="utf-8")
        settings = agent_settings(
            listener,
            trial=True,
            steps=plan.steps or 0,
            batch=plan.batch,
            noise=0.0 if plan.steps else _NOISE,
            memory=plan.memory,
            free=plan.free,
            margin=plan.margin,
            until_evaluation=plan.until_evaluation,
            started_at=time.time(),
            folders=[folder, *plan.folders],
            made=str(made),
        )
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
        extra = TRACKERS_OFF | temporary | dict(plan.variables or {})
        process = start(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(settings, extra),
            start_new_session=os.name == "posix",  # Ctrl-C is for this process, which ends them all
        )
        left: list[int] = []
        try:
            with ProcessTree(process.pid, listener.secret) as tree:
                try:
                    other_bytes = _follow(process, tree, listener, observed, is_enough)
                finally:
                    left = tree.kill()
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
        text = hide_secrets(end_of(output), command, os.environ)
    observed.hide_secrets(command)
    outcome, failure = verdict(observed, code, text)
    if outcome == "killed" and observed.is_enough:
        outcome, failure = "ok", None
    seconds = time.perf_counter() - started_at
    exit_code = None if observed.is_reached or observed.is_enough else code
    return TrialResult(
        outcome, observed, failure, other_bytes, seconds, text, exit_code, tuple(left)
    )


def _follow(
    process: subprocess.Popen[bytes],
    tree: ProcessTree,
    listener: Listener,
    observed: Observed,
    is_enough: Callable[[Observed], bool],
) -> int:
    """Take in messages until the trial is over; return the peak of the other processes' memory."""
    peak, sampled_at, ended_at = 0, 0.0, None
    while True:
        for message in listener.poll(_POLL):
            if message.get("event") in ("hello", "lifeline"):
                tree.add(message["pid"])
            observed.add(message)
        observed.is_enough = is_enough(observed)
        if (
            observed.is_reached
            or observed.is_enough
            or observed.overwritten
            or observed.out_of_memory  # other ranks may wait for this one for ever
            or observed.agent_errors  # nobody counts the steps any more
        ):
            return peak
        now = time.monotonic()
        if now - sampled_at > _SAMPLE:
            sampled_at = now
            ranks = {rank.pid for rank in observed.ranks if not rank.closed}
            if ranks and observed.has_all_ranks:  # before, a rank would count as another process
                peak = max(peak, tree.other_bytes(ranks))
        if process.poll() is not None:
            # A command may leave its training behind, as `nohup train &` in a script does.
            goes_on = any(not rank.closed for rank in observed.trainers)
            ended_at = None if goes_on else ended_at or now
            if ended_at is not None and now - ended_at > _QUIET:
                return peak


def verdict(observed: Observed, code: int, output: str) -> tuple[Outcome, Failure | None]:
    """Return how a command ended, from what was seen, its exit code and the end of its output."""
    if observed.is_reached and not observed.out_of_memory and observed.failure is None:
        return "ok", None
    if observed.agent_errors and observed.failure is None:
        error = observed.agent_errors[0]
        if error.startswith(("MemoryError", "OutOfMemoryError")):
            return "out_of_memory", Failure("MemoryError", "while the agent measured", output)
        return "failed", Failure("AgentError", error, output)
    if observed.failure is not None:
        failure = observed.failure
        if observed.out_of_memory:
            return "out_of_memory", failure
        if died_out_of_memory(code, output) or _was_killed(code):
            return "killed", failure
        return "failed", Failure(failure.type, failure.message, output or failure.traceback)
    if code == 0:
        return "ok", None
    failure = Failure("ExitCode", f"the command ended with status {code}", output)
    if died_out_of_memory(code, output) or _was_killed(code):
        return "killed", failure
    return "failed", failure


def _was_killed(code: int) -> bool:
    """Whether a shell reports that its child was killed (128 + SIGKILL)."""
    return code == 137


def end_of(output: IO[bytes]) -> str:
    """Return the end of what a command printed."""
    length = output.seek(0, os.SEEK_END)
    output.seek(max(length - 4 * _OUTPUT, 0))  # a character has at most four bytes
    return output.read().decode(errors="replace")[-_OUTPUT:]
