"""Follow several tasks in parallel, in forks of this process if it can be forked.

Following runs Python on one core. A fork has all imports and the built model at once, while a new
process would need seconds to import.
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
"""A batch size, and the variant of the step."""


class AnyFollower(Protocol):
    """`Follower` or `FrameworkFollower`.

    `can_fork` says that no values are computed, so that one core suffices and forks do not differ.
    `is_followed` says that following has succeeded with its kind of tensors.
    """

    is_followed: bool
    how: str
    notes: list[str]

    @property
    def can_fork(self) -> bool: ...

    @property
    def batch_grows_in_steps(self) -> bool: ...

    @property
    def examples(self) -> int | None: ...

    @property
    def at_least(self) -> int | None: ...

    def trace(self, batch_size: int, variant: Variant) -> Trace: ...

    def traces(self, batch_sizes: Sequence[int], variant: Variant) -> list[Trace]: ...


def answers(
    follower: AnyFollower, tasks: Sequence[Task], failure: Callable[[BaseException], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return `{"outcome": "ok", "trace": ...}` for each task, or `failure(error)`.

    The first answer of all has `batch_grows_in_steps` as well.
    """
    asking = None if follower.is_followed else tasks[0]

    def answer(task: Task, follow: Callable[[int, Variant], Trace]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = {"outcome": "ok", "trace": follow(*task).to_dict()}
            if task is asking:  # not before a fork, which must not share the data set's files
                found["batch_grows_in_steps"] = follower.batch_grows_in_steps
        except BaseException as error:
            found = failure(error)
        return found | {"notes": list(follower.notes)}

    def follow_here(batch_size: int, variant: Variant) -> Trace:
        return follower.traces([batch_size], variant)[0]

    if follower.can_fork:
        found = _in_forks(lambda task: answer(task, follower.trace), tasks)
        for note in (note for one in found for note in one.pop("notes", ())):
            if note not in follower.notes:
                follower.notes.append(note)
        follower.is_followed |= any(one["outcome"] == "ok" for one in found)
        refused = all(one.get("failure", {}).get("type") == "UsageError" for one in found)
        if follower.is_followed or refused:
            return found
    # In this process, so that the follower keeps its state after a failure (real tensors instead).
    return [answer(task, follow_here) for task in tasks]


def _in_forks(
    answer: Callable[[Task], dict[str, Any]], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    forks = min(len(tasks), len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    if forks < 2:
        return [answer(task) for task in tasks]
    readers: list[int] = []
    children: list[int] = []
    for fork in range(forks):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # This process has a second thread, which waits for commands and holds no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            for unread in (*readers, reader):  # a write must fail once nobody reads
                os.close(unread)
            _run_fork(answer, tasks[fork::forks], writer)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    found: list[dict[str, Any]] = [{}] * len(tasks)
    for fork, reader in enumerate(readers):
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        died = {"type": "ProcessDied", "message": "a fork of the following process died"}
        done = pickle.loads(data) if data else [{"outcome": "failed", "failure": died}]
        found[fork::forks] = (done * len(tasks))[: len(tasks[fork::forks])]
    for child in children:
        os.waitpid(child, 0)
    return found


def _run_fork(answer: Callable[[Task], dict[str, Any]], tasks: Sequence[Task], writer: int) -> None:
    """Run the tasks in a fork and exit; never returns."""
    try:
        torch.set_num_threads(1)  # a fork does not have its parent's threads
        with os.fdopen(writer, "wb") as stream:
            stream.write(pickle.dumps([answer(task) for task in tasks]))
    finally:
        os._exit(0)
