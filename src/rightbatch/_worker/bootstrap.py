"""What a worker process does before the user's code runs in it."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from rightbatch._worker.failure import failure
from rightbatch._worker.wire import Header, receive, send

_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Channel:
    """The worker's side of the dialogue: receives commands in order, and sends reports.

    A thread reads the commands, so that the process ends at once when its parent has exited.
    """

    def __init__(self, commands: BinaryIO, reports: BinaryIO) -> None:
        self._reports = reports
        self._sending = threading.Lock()
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self._commands = commands
        threading.Thread(target=self._read, daemon=True, name="commands").start()

    def receive(self) -> dict[str, Any]:
        """Wait for the next command."""
        return self._inbox.get()

    def send(self, **report: Any) -> None:
        """Send a report; thread-safe."""
        with self._sending:
            send(self._reports, **report)

    def forward(self, line: bytes) -> None:
        """Send a report of another process unchanged."""
        with self._sending:
            self._reports.write(line)
            self._reports.flush()

    def failed(self, error: BaseException) -> None:
        """Report an error that ends this worker."""
        self.send(event="build", **failure(error))

    def _read(self) -> None:
        while (message := receive(self._commands)) is not None:
            self._inbox.put(message)
        os._exit(0)


def take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return private streams from and to the parent.

    From now on the workload's stdout is redirected to stderr, and its stdin is empty.
    """
    commands = os.fdopen(os.dup(0), "rb")
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Ctrl-C reaches the whole process group; the parent handles it and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return commands, reports


def load(header: Header, *, keeps_group: bool = False) -> Any:
    """Unpickle and load the header's subject in its sender's folder, with its `sys.path`.

    `keeps_group` keeps the variables of torchrun, for processes that torchrun started.
    """
    os.chdir(header.folder)
    sys.path[:] = header.sys_path + [p for p in sys.path if p not in header.sys_path]
    sys.argv = ["rightbatch"]
    # If torchrun started the parent, every probe would otherwise try to join its group.
    for name in () if keeps_group else _GROUP:
        os.environ.pop(name, None)
    import torch

    from rightbatch._device.random_state import seed_all

    warm_up(torch)
    seed_all(header.seed)
    return pickle.loads(header.subject).load()


def warm_up(torch: Any) -> None:
    """Run one optimizer step: its imports (100 MiB) must not count as the workload's memory."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.sum().backward()
    torch.optim.AdamW([parameter]).step()
