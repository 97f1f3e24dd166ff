"""Ends all processes of a command when rightbatch has been killed (Linux).

Agents end their own processes then. A shell or `make` has none, and would go on with the next line
of its script. So a second process waits for the end of this one. It holds the agents' connections,
so that no agent ends before all processes are stopped, ends all that have the command's secret in
their environment, with their descendants, and removes the temporary folders.

Run as a script, this file is that process; it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PREFIXES = ("rightbatch-", "rb-")  # of folders that may be removed
_PATIENCE = 10.0  # seconds until what does not end is left
_MESSAGE = 1 << 16  # bytes


class Reaper:
    """The process that waits for the end of this one; a context manager that ends it.

    `mark` is in the environment of the command's processes, `folders` are temporary.
    """

    def __init__(self, mark: str, folders: Sequence[str]) -> None:
        self._control: socket.socket | None = None
        if not sys.platform.startswith("linux"):
            return
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,  # a signal to the group of this process is not for it
            )
        # Not as an argument, which other users could read.
        self._control.send(json.dumps({"mark": mark, "folders": list(folders)}).encode())

    def hold(self, connection: socket.socket) -> None:
        """Keep an agent's connection open when this process ends."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [b"."], [connection.fileno()])

    def __enter__(self) -> Reaper:
        return self

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._process.kill()
            self._process.wait()
            self._control.close()


def _wait(control: socket.socket) -> dict[str, Any]:
    """Return what was sent first, when the other end has been closed; hold connections until then.

    Connections that agents close are closed here as well.
    """
    asked: dict[str, Any] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                os.close(descriptor)
                continue
            data, connections, *_ = socket.recv_fds(control, _MESSAGE, 16)
            if not data:
                return asked
            for connection in connections:
                poll.register(connection, 0)  # its end only: messages are not for this process
            asked = asked or json.loads(data)


def _processes_with(mark: bytes) -> set[int]:
    """Return the processes that have the mark in their environment, and their descendants."""
    parents, marked = {}, set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":
                continue
            parents[int(folder.name)] = int(parent)
            if mark in (folder / "environ").read_bytes():
                marked.add(int(folder.name))
    while more := {pid for pid, parent in parents.items() if parent in marked} - marked:
        marked |= more
    return marked - {os.getpid()}


def _end(mark: bytes) -> None:
    """Stop all processes, so that none begins anything more, then end them."""
    stopped: set[int] = set()
    until = time.monotonic() + _PATIENCE
    while (new := _processes_with(mark) - stopped) and time.monotonic() < until:
        _send(new, signal.SIGSTOP)
        stopped |= new
    while (left := _processes_with(mark)) and time.monotonic() < until:
        _send(left, signal.SIGKILL)
        time.sleep(0.01)


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def main() -> None:
    """Wait for the end of rightbatch, and clean up behind it."""
    with socket.socket(fileno=os.dup(0)) as control:
        asked = _wait(control)
    _end(asked["mark"].encode())
    for folder in asked["folders"]:
        if Path(folder).name.startswith(_PREFIXES):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
