"""A run that is only watched: the command has the terminal, and ends as it would alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._training.watched import LiveBytes, SampledUpdate, Watched, WatchRequest
from rightbatch.integrations.command.launch import agent_settings, environment, start, without_agent
from rightbatch.integrations.command.listener import Listener
from rightbatch.integrations.command.observed import Observed, Rank, examples_per_step
from rightbatch.integrations.command.process_tree import ProcessTree

_POLL = 0.1  # seconds
_SHOW = 1.0  # seconds between two calls of `show`
_GRACE = 0.5  # seconds that the last messages may take


def watch(command: Sequence[str], request: WatchRequest) -> Watched:
    """Run a command as it stands, and return what its agents saw.

    Raises:
        UsageError: if the program cannot be started, or nothing was seen of a command that ended
            well.
    """
    observed = Observed()
    with Listener() as listener:
        settings = agent_settings(listener, trial=False, steps=request.steps or 0)
        stdout = sys.stderr if request.stdout_to_stderr else None
        process = start(command, stdout=stdout, env=environment(settings))
        with _signals_for(process):
            _follow(process, listener, observed, request)
            if process.poll() is None:  # it is at its last step
                with ProcessTree(process.pid, listener.secret) as tree:
                    tree.kill()
                process.wait()
                code = 0
            else:
                code = process.returncode
    if code == 0 and not observed.has_torch:
        raise UsageError(f"nothing of the command was seen: {without_agent(command)}")
    return watched_of(observed, code)


def _follow(
    process: subprocess.Popen[bytes], listener: Listener, observed: Observed, request: WatchRequest
) -> None:
    shown_at, ended_at = time.monotonic(), None
    while not observed.is_reached:
        for message in listener.poll(_POLL):
            observed.add(message)
        now = time.monotonic()
        if now - shown_at > _SHOW and observed.trainers:
            shown_at = now
            request.show(watched_of(observed, None))
        if process.poll() is not None:
            ended_at = ended_at or now
            if now - ended_at > _GRACE:
                return


@contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand signals on to the command. A terminal sends Ctrl-C to both processes by itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: Any) -> None:
        if not (number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()):
            process.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watched_of(observed: Observed, exit_code: int | None) -> Watched:
    """Return what was seen so far, over all ranks."""
    ranks = observed.ranks
    first = ranks[0] if ranks else None
    full = _full_steps(first)
    device = next((rank.memory["device"] for rank in ranks if rank.memory), "cpu")
    combine = sum if device == "cpu" else max
    memories = [rank.memory for rank in ranks if rank.memory]
    limits = [memory["limit"] for memory in memories if memory.get("limit")]
    # Ranks that a script has spawned do not know that they share it.
    shared = [memory["shared_limit"] for memory in memories if memory.get("shared_limit")]
    return Watched(
        batch_size=examples_per_step(ranks) if ranks else None,
        micro_batches=full[0]["micro_batches"] if full else None,
        ranks=max(len(ranks), 1),
        steps=first.step_count if first else 0,
        step_seconds=tuple(step["seconds"] for step in first.steps) if first else (),
        waited_seconds=tuple(step["waited"] for step in first.steps) if first else (),
        losses=tuple(first.losses) if first else (),
        device=device,
        peak_bytes=combine(memory["charged"] for memory in memories) if memories else None,
        limit_bytes=min([combine(limits), *shared]) if limits else None,
        fixed_bytes=combine(rank.fixed for rank in ranks) if ranks else None,
        live=_live(ranks) if device == "cpu" else None,
        updates=_updates(ranks),
        no_noise=next((rank.no_noise for rank in ranks if rank.no_noise), ""),
        examples=first.epoch if first else None,
        exit_code=exit_code,
        learning_rate=first.learning_rate if first else None,
        betas=first.betas if first else None,
        notes=tuple(observed.notes),
    )


def _full_steps(rank: Rank | None) -> list[dict[str, Any]]:
    """Return the steps of the largest batch: the last one of an epoch may be smaller."""
    steps = [step for step in rank.steps if step["examples"]] if rank else []
    largest = max((step["examples"] for step in steps), default=0)
    return [step for step in steps if step["examples"] == largest]


def _live(ranks: Sequence[Rank]) -> LiveBytes | None:
    """Return the memory in use over all ranks, at the peaks of the steps with the full batch.

    The time at which a reading is taken is chance, so the highest of several steps counts.
    """
    found = [(0, 0, 0, 0)]
    for rank in ranks:
        steps = [step["live"] for step in _full_steps(rank) if "live" in step]
        if not steps:
            return None
        examples = max(step["examples"] for step in steps)
        full = [step for step in steps if step["examples"] == examples]
        highest = max(full, key=lambda step: step["peak"] - step["start"])
        found.append((examples, *(highest[key] for key in ("start", "peak", "cleared"))))
    sizes, *sums = zip(*found, strict=True)
    return LiveBytes(max(sizes), *map(sum, sums)) if ranks else None


def _updates(ranks: Sequence[Rank]) -> tuple[SampledUpdate, ...]:
    """Return the updates that were sampled on every rank, with all micro-batches of known size."""
    if not ranks:
        return ()
    by_rank = [{each["update"]: each for each in rank.noise} for rank in ranks]
    found = []
    for update in sorted(set.intersection(*(set(each) for each in by_rank))):
        parts = [
            (float(square), size) for each in by_rank for square, size in each[update]["parts"]
        ]
        if len(parts) > 1 and all(size for _, size in parts):
            whole = float(by_rank[0][update]["whole"])
            of_layers = bool(by_rank[0][update].get("of_layers"))
            found.append(SampledUpdate(whole, tuple(parts), 1 / len(ranks), update, of_layers))
    return tuple(found)
