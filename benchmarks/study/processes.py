"""rightbatch as a person starts it: real processes, whose ends are seen to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks._record import say

RIGHTBATCH = [sys.executable, "-m", "rightbatch"]
_PATIENCE = 20.0  # seconds, for a process that was asked to end


def environment(**more: str) -> dict[str, str]:
    """A person's, without a store of theirs."""
    own = {name: told for name, told in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return own | {"MLFLOW_DISABLE_TELEMETRY": "true"} | more


@dataclass(frozen=True)
class Served:
    """A page's server: where it is, and how long it read before it said so, in seconds."""

    url: str
    seconds: float
    process: subprocess.Popen[str]


@contextmanager
def page_of(folder: Path) -> Iterator[Served]:
    """`rightbatch ui FOLDER`, until the end of the block."""
    began = time.perf_counter()
    with subprocess.Popen(
        [*RIGHTBATCH, "ui", str(folder), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield Served(_address(process), time.perf_counter() - began, process)
        finally:
            end(process, signal.SIGINT)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"the page is (\S+)", line):
            return found[1]
    raise RuntimeError(f"rightbatch ui ended: {''.join(said)}")


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is to end well; it is ended if the block fails.

    Raises:
        RuntimeError: if it ends badly, with what it said.
    """
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, text=True, stdout=subprocess.DEVNULL, stderr=said, env=environment()
        ) as process,
    ):
        try:
            yield process
            process.wait()
        finally:
            end(process)
            if process.returncode:
                said.seek(0)
                say(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-2000:]}")
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}")


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> None:
    """Ask it to end, and wait; kill it if it does not."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
