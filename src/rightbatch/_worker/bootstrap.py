"""What a worker's process does before anything of the user's runs in it."""

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
    """The worker's side of the dialogue: commands come in order, reports go out.

    Commands are read by a thread, so that the process ends at once when its parent is gone.
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
        """Send a report; from any thread."""
        with self._sending:
            send(self._reports, **report)

    def forward(self, line: bytes) -> None:
        """Pass on a report of another process as it came."""
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
    """Return private pipes to the parent.

    What the workload prints goes to stderr from now on, and its input is empty.
    """
    commands = os.fdopen(os.dup(0), "rb")
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Ctrl-C reaches the whole group; the parent decides, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return commands, reports


def load(header: Header, *, keeps_group: bool = False) -> Any:
    """Unpickle and load the header's subject in the folder and with the path of its sender.

    `keeps_group` keeps torchrun's variables, for processes that it started.
    """
    os.chdir(header.folder)
    sys.path[:] = header.sys_path + [p for p in sys.path if p not in header.sys_path]
    sys.argv = ["rightbatch"]
    # A process that torchrun started would otherwise make every probe try to join its group.
    for name in () if keeps_group else _GROUP:
        os.environ.pop(name, None)
    import torch

    from rightbatch._device.random_state import seed_all

    warm_up(torch)
    seed_all(header.seed)
    return pickle.loads(header.subject).load()


def warm_up(torch: Any) -> None:
    """Take one optimizer step, since what torch imports for it (100 MiB) is no workload's need."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.sum().backward()
    torch.optim.AdamW([parameter]).step()
