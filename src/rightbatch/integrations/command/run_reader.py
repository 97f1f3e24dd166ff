"""Reads the messages and the output of a study's run while it trains."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator

from rightbatch._study.records import Point
from rightbatch.integrations.command.command_output import OutputNumbers
from rightbatch.integrations.command.listener import Listener
from rightbatch.integrations.command.observed import Observed
from rightbatch.integrations.command.process_tree import ProcessTree
from rightbatch.integrations.command.run_end import RunEnd
from rightbatch.integrations.command.run_points import RunPoints

_POLL = 0.02  # seconds; by so much the step of a number in the output may be wrong
_YIELD = 0.2  # seconds between two deliveries of points
_QUIET = 1.0  # seconds that messages of processes which have ended may still take


class RunReader:
    """Takes in what a command sends and prints, in a thread of its own.

    The store may take long to write points. Messages that wait would hold the training up, and
    numbers that are read late would be put at a later step.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        listener: Listener,
        tree: ProcessTree,
        numbers: OutputNumbers,
        observed: Observed,
        points: RunPoints,
    ) -> None:
        self._process, self._listener, self._tree = process, listener, tree
        self._numbers, self._observed, self._points = numbers, observed, points
        self._lock = threading.Lock()
        self._is_over, self._is_closed = threading.Event(), threading.Event()
        self._quiet_since: float | None = None  # the command has ended
        self._error: Exception | None = None

    def points(self, end: RunEnd, stopped: threading.Event) -> Iterator[tuple[Point, ...]]:
        """Yield points until the command has ended, or is to be ended."""
        thread = threading.Thread(target=self._read, daemon=True, name="rightbatch-command")
        thread.start()
        try:
            while not (end.reason or self._is_over.is_set() or stopped.is_set()):
                self._is_over.wait(_YIELD)
                with self._lock:
                    found = end.take(self._points.take(self._observed))
                if found:
                    yield found
        finally:
            self._is_closed.set()
            thread.join()
        if self._error is not None:
            raise self._error
        if self._observed.is_reached and not end.reason:
            end.reason = f"{end.steps} steps"

    def _read(self) -> None:
        try:
            while not (self._is_closed.is_set() or self._is_over.is_set()):
                self._read_once()
        except Exception as error:
            self._error = error
        finally:
            self._is_over.set()

    def _read_once(self) -> None:
        observed = self._observed
        messages = list(self._listener.poll(_POLL))
        is_ended = self._process.poll() is not None
        with self._lock:
            for message in messages:
                if message.get("event") in ("hello", "lifeline"):
                    self._tree.add(message["pid"])
                observed.add(message)
                self._points.add(message)
            for name, value in self._numbers.read(is_over=is_ended):
                self._points.number(name, value)
        # After an error of one rank the others may wait for ever; without an agent nobody counts.
        if observed.is_reached or observed.out_of_memory or observed.agent_errors:
            self._is_over.set()
        elif is_ended:
            self._wait_for_the_rest()

    def _wait_for_the_rest(self) -> None:
        """End when messages have stopped.

        A command may leave its training behind, as `nohup train &` in a script does.
        """
        is_left = self._process.returncode == 0 and any(
            not rank.closed for rank in self._observed.trainers
        )
        if is_left:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = time.monotonic()
        elif time.monotonic() - self._quiet_since > _QUIET:
            self._is_over.set()
