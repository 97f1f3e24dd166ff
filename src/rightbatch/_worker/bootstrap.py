"""What a process that was started to run a workload does first, whatever it runs then."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO

from rightbatch._worker.wire import Header, receive

_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Private pipes to the parent; what the workload prints goes to stderr, its input is empty."""
    commands = os.fdopen(os.dup(0), "rb")
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Ctrl-C reaches the whole group; the parent decides, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return commands, reports


def listen(commands: BinaryIO) -> queue.Queue[dict[str, Any]]:
    """Commands, read by a thread, so that the process ends at once when its parent is gone."""
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        while (message := receive(commands)) is not None:
            inbox.put(message)
        os._exit(0)

    threading.Thread(target=read, daemon=True, name="commands").start()
    return inbox


def load(header: Header, *, keeps_group: bool = False) -> Any:
    """The factory, where the one who sent it stands; `keeps_group` for what torchrun started."""
    os.chdir(header.folder)
    sys.path[:] = header.sys_path + [p for p in sys.path if p not in header.sys_path]
    sys.argv = ["rightbatch"]
    # A process that torchrun started would otherwise make every probe try to join its group.
    for name in () if keeps_group else _GROUP:
        os.environ.pop(name, None)
    import torch

    import rightbatch._training.session  # noqa: F401  what a session needs, before the base is taken
    from rightbatch._device.random_state import seed_all

    _first_step(torch)
    seed_all(header.seed)
    factory = pickle.loads(header.factory)
    load = getattr(factory, "load", None)
    return load() if load is not None else factory


def _first_step(torch: Any) -> None:
    """What torch itself imports with a process' first optimizer (100 MiB) is no workload's need."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.sum().backward()
    torch.optim.AdamW([parameter]).step()


def failure(error: BaseException) -> dict[str, Any]:
    from rightbatch._device import is_out_of_memory

    out_of_memory = is_out_of_memory(error)
    try:
        text = "".join(traceback.format_exception(error))
    except MemoryError:
        text = ""
    return {
        "outcome": "out_of_memory" if out_of_memory else "failed",
        "failure": {
            "type": type(error).__name__,
            "message": str(error)[:2000],
            "traceback": text[-20000:],
        },
    }
