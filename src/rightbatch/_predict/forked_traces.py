"""Traces for a request of several, in copies of this process where it can be copied.

Following is Python's work on one core, and what was imported and built serves every request: a fork
has it at once, where a new process would import for seconds.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from rightbatch._predict.trace import Trace
from rightbatch._predict.variant import Variant

Task = tuple[int, Variant]
"""A batch size, and how the step is run."""


class AnyFollower(Protocol):
    """`Follower` or `SessionFollower`. `is_copyable`: no numbers are computed, so that one core
    is enough and copies do not differ. `is_followed`: its tensors are known to serve."""

    is_followed: bool
    notes: list[str]

    @property
    def is_copyable(self) -> bool: ...

    def trace(self, batch_size: int, variant: Variant) -> Trace: ...

    def traces(self, batch_sizes: Sequence[int], variant: Variant) -> list[Trace]: ...


def answers(
    follower: AnyFollower, tasks: Sequence[Task], failure: Callable[[BaseException], dict[str, Any]]
) -> list[dict[str, Any]]:
    """For each task `{"outcome": "ok", "trace": ...}`, or what `failure` makes of its error."""

    def answer(task: Task, follow: Callable[[int, Variant], Trace]) -> dict[str, Any]:
        try:
            found = {"outcome": "ok", "trace": follow(*task).to_dict()}
        except BaseException as error:
            found = failure(error)
        return found | {"notes": list(follower.notes)}

    def follow_here(batch_size: int, variant: Variant) -> Trace:
        return follower.traces([batch_size], variant)[0]

    if follower.is_copyable:
        found = _in_copies(lambda task: answer(task, follower.trace), tasks)
        for note in (note for one in found for note in one.pop("notes", ())):
            if note not in follower.notes:
                follower.notes.append(note)
        follower.is_followed |= any(one["outcome"] == "ok" for one in found)
        refused = all(one.get("failure", {}).get("type") == "UsageError" for one in found)
        if follower.is_followed or refused:
            return found
    # Here, so that what the follower learns of a failure (real tensors instead) is kept.
    return [answer(task, follow_here) for task in tasks]


def _in_copies(
    answer: Callable[[Task], dict[str, Any]], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    copies = min(len(tasks), len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    if copies < 2:
        return [answer(task) for task in tasks]
    readers, children = [], []
    for copy in range(copies):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # This process has a second thread, which waits for commands and holds no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _work(answer, tasks[copy::copies], writer)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    found: list[dict[str, Any]] = [{}] * len(tasks)
    for copy, reader in enumerate(readers):
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        died = {"type": "ProcessDied", "message": "a copy of the following process ended"}
        done = pickle.loads(data) if data else [{"outcome": "failed", "failure": died}]
        found[copy::copies] = (done * len(tasks))[: len(tasks[copy::copies])]
    for child in children:
        os.waitpid(child, 0)
    return found


def _work(answer: Callable[[Task], dict[str, Any]], tasks: Sequence[Task], writer: int) -> None:
    """The life of a copy; never returns."""
    try:
        torch.set_num_threads(1)  # the threads of the process it was copied from are not there
        with os.fdopen(writer, "wb") as stream:
            stream.write(pickle.dumps([answer(task) for task in tasks]))
    finally:
        os._exit(0)
