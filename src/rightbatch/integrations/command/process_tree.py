"""All processes of a command, to the last grandchild, and their end.

Ranks and daemons start sessions of their own, so a process group does not hold them all. On Linux
this process becomes their "subreaper": what a process of the command leaves behind becomes a child
of this one, and is recognised by the secret in its environment.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from rightbatch._device.proc import own_bytes

_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37
_COMPILER = os.path.join("_inductor", "compile_worker")  # noqa: PTH118
_PATIENCE = 10.0  # seconds until what does not end is left, and named


class ProcessTree:
    """The descendants of the process `pid`; a context manager that leaves none of them running."""

    def __init__(self, pid: int, mark: str) -> None:
        self._root = pid
        self._mark = mark.encode()
        self._seen: dict[int, psutil.Process] = {}
        self._was_subreaper = set_subreaper(True)
        self.look()

    def look(self) -> list[psutil.Process]:
        """Return the processes that are running now, and remember them."""
        found: dict[int, psutil.Process] = {}
        for process in [*_of(self._root), *self._seen.values(), *self._orphans()]:
            with suppress(psutil.Error):
                for each in [process, *process.children(recursive=True)]:
                    found[each.pid] = each
        self._seen |= found
        return [each for each in found.values() if _is_running(each)]

    def add(self, pid: int) -> None:
        """Remember a process that an agent has announced."""
        for process in _of(pid):
            self._seen.setdefault(pid, process)

    def other_bytes(self, ranks: set[int]) -> int:
        """Return the memory of all processes but the `ranks` and their launchers; 0 off Linux.

        Those in which torch compiles are left out as well: no batch changes what they need.
        """
        if not sys.platform.startswith("linux"):
            return 0
        left_out = ranks | {self._root}
        for pid in ranks:
            with suppress(psutil.Error):
                left_out |= {each.pid for each in psutil.Process(pid).parents()}
        others = [each for each in self.look() if each.pid not in left_out]
        return sum(own_bytes(each.pid) for each in others if not _compiles(each))

    def kill(self) -> list[int]:
        """End all processes at once; return the pids of those that could not be ended."""
        until = time.monotonic() + _PATIENCE
        while running := self.look():
            for process in running:
                with suppress(psutil.Error):
                    process.kill()
            self._reap()
            if time.monotonic() > until:
                return [process.pid for process in running]
            time.sleep(0.01)
        self._reap()
        return []

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._was_subreaper is False:
            set_subreaper(False)

    def _reap(self) -> None:
        """Collect orphans that have ended; `Popen` waits for the command itself."""
        if os.name != "posix":
            return
        for pid, process in self._seen.items():
            with suppress(psutil.Error, OSError):
                is_mine = pid != self._root and process.ppid() == os.getpid()
                if is_mine and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(pid, os.WNOHANG)

    def _orphans(self) -> list[psutil.Process]:
        """Children of this process that the command has left behind."""
        found = []
        for process in psutil.Process().children():
            if process.pid in self._seen or process.pid == self._root:
                continue
            with suppress(OSError):
                if self._mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                    found.append(process)
        return found


def _of(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid)]
    except psutil.Error:
        return []


def _compiles(process: psutil.Process) -> bool:
    try:
        return any(_COMPILER in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def set_subreaper(on: bool) -> bool | None:
    """Make this process inherit orphans; return whether it did before, None if unsupported."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    libc.prctl(_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
    return bool(before.value)
