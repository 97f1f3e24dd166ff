"""A study's run as a Ray task: it starts the run's process and streams its events back."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rightbatch._study.places import ThisMachine
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker.wire import Header, pickled
from rightbatch._workload.factory import FileFactory

_POLL = 0.2  # seconds after which a worker notices that its task was cancelled
_LINGER = 0.3
"""Seconds to wait after the last event. It may make the sweep cancel the task, and Ray aborts a
process that cancels a task at the moment it ends."""
_MAX_FILE_BYTES = 2**20  # of a Python file that is sent with the factory


@dataclass(frozen=True)
class Sources:
    """A factory's file and the Python files in its folder, for machines that do not have them.

    Everything else that it reads, such as data, must exist at the same path on every machine.
    """

    factory: FileFactory
    files: Mapping[str, bytes]


def sources_of(factory: object) -> Sources | None:
    """Return the files to send with a factory; None if it is not in a file."""
    if not isinstance(factory, FileFactory):
        return None
    beside = [path for path in factory.path.parent.glob("*.py") if path.is_file()]
    small = [path for path in beside if path.stat().st_size <= _MAX_FILE_BYTES]
    return Sources(factory, {path.name: path.read_bytes() for path in small})


@contextmanager
def at_home(header: Header, sources: Sources | None) -> Iterator[Header]:
    """Yield the header adapted to this machine, with the factory's files in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="rightbatch-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        if not Path(header.folder).is_dir():
            header = replace(header, folder=str(folder))
        if sources is not None and not sources.factory.path.is_file():
            for file, content in sources.files.items():
                (folder / file).write_bytes(content)
            factory = FileFactory(folder / sources.factory.path.name, sources.factory.function)
            header = replace(header, subject=pickled(WorkloadTraining(factory)))
        if (header.device or "").startswith("cuda"):
            header = replace(header, device="cuda")  # Ray chooses which one
        yield header


def train(header: Header, plan: RunPlan, sources: Sources | None) -> Iterator[RunEvent]:
    """Run in the worker and yield the run's events; cancelling the task ends the run's process."""
    try:
        with at_home(header, sources) as mine:
            yield from _stream(ThisMachine(mine, 1), plan)
    except Exception:
        time.sleep(_LINGER)
        raise
    time.sleep(_LINGER)


def _stream(machine: ThisMachine, plan: RunPlan) -> Iterator[RunEvent]:
    """Yield events, polling: Ray cancels a task between two bytecodes, not in a blocking call."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the task reserves one CPU per process
    events: queue.SimpleQueue[RunEvent | BaseException | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for said in machine.stream_events(plan):
                events.put(said)
            events.put(None)
        except BaseException as error:
            events.put(error)

    listening = threading.Thread(target=listen, daemon=True, name="run")
    listening.start()
    try:
        while (said := _next(events)) is not None:
            if isinstance(said, BaseException):
                raise said
            yield said
    finally:
        machine.stop()
        listening.join()


def gpu_bytes() -> list[int]:
    """Return the memory of each GPU of this machine; empty if the driver does not report it."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
    except pynvml.NVMLError:
        return []


def _next(
    events: queue.SimpleQueue[RunEvent | BaseException | None],
) -> RunEvent | BaseException | None:
    while True:
        try:
            return events.get(timeout=_POLL)
        except queue.Empty:
            continue
