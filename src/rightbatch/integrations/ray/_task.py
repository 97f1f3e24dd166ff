"""A run of a study in a Ray worker: its own process there, and what it says, streamed back."""

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

_HEARS = 0.2  # seconds after which a worker notices that its task was cancelled
_LINGERS = 0.3
"""Seconds after the last word: Ray aborts a sweep that cancels a task at the moment when it ends,
and what a run says last is what may make the sweep cancel it."""
_LARGEST = 2**20  # bytes of a Python file that is sent along


@dataclass(frozen=True)
class Sources:
    """A factory's file and the Python files beside it, for machines that have not got them.

    What else it reads, such as data, has to be at the same place on every machine.
    """

    factory: FileFactory
    files: Mapping[str, bytes]


def sources_of(factory: object) -> Sources | None:
    """What to send along with a factory; None for one that is no file."""
    if not isinstance(factory, FileFactory):
        return None
    beside = [path for path in factory.path.parent.glob("*.py") if path.is_file()]
    small = [path for path in beside if path.stat().st_size <= _LARGEST]
    return Sources(factory, {path.name: path.read_bytes() for path in small})


@contextmanager
def at_home(header: Header, sources: Sources | None) -> Iterator[Header]:
    """The header as this machine can follow it, while it is needed."""
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
            header = replace(header, device="cuda")  # which one is Ray's to say
        yield header


def train(header: Header, plan: RunPlan, sources: Sources | None) -> Iterator[RunEvent]:
    """In the worker: what the run says. Cancelling the task ends the run's process."""
    try:
        with at_home(header, sources) as mine:
            yield from _heard(ThisMachine(mine, 1), plan)
    except Exception:
        time.sleep(_LINGERS)
        raise
    time.sleep(_LINGERS)


def _heard(machine: ThisMachine, plan: RunPlan) -> Iterator[RunEvent]:
    """Ray interrupts a worker between two instructions, so none may wait for the run for long."""
    os.environ["OMP_NUM_THREADS"] = "1"  # Ray counts a processor for each process
    heard: queue.SimpleQueue[RunEvent | BaseException | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for said in machine.stream_events(plan):
                heard.put(said)
            heard.put(None)
        except BaseException as error:
            heard.put(error)

    listening = threading.Thread(target=listen, daemon=True, name="run")
    listening.start()
    try:
        while (said := _next(heard)) is not None:
            if isinstance(said, BaseException):
                raise said
            yield said
    finally:
        machine.stop()
        listening.join()


def gpu_bytes() -> list[int]:
    """The memory of each GPU of this machine; none where the driver does not tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
    except pynvml.NVMLError:
        return []


def _next(
    heard: queue.SimpleQueue[RunEvent | BaseException | None],
) -> RunEvent | BaseException | None:
    while True:
        try:
            return heard.get(timeout=_HEARS)
        except queue.Empty:
            continue
