"""The process of a run: `python -m rightbatch._study.runs`, driven over its standard input.

It ends at once when whoever started it is gone. Several processes that train together are started
here by torchrun, each with this module again, and find what they are told in a file.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO

from rightbatch._worker.bootstrap import failure, listen, load, take_over_streams
from rightbatch._worker.wire import Header, receive_bytes, send
from rightbatch._study.runs.training import RunPlan, Teller, run

TOLD = "RIGHTBATCH_STUDY_RUN"
"""In the environment of processes that torchrun started: the file that says what to do."""


def main() -> None:
    commands, reports = take_over_streams()
    told = os.environ.get(TOLD)
    if told is not None:
        header, plan = pickle.loads(Path(told).read_bytes())
        listen(commands)
        _train(header, plan, reports)
        return
    header = pickle.loads(receive_bytes(commands))
    plan = pickle.loads(receive_bytes(commands))
    listen(commands)
    if plan.processes > 1:
        _together(header, plan, reports)
    else:
        _train(header, plan, reports)


def _train(header: Header, plan: RunPlan, reports: BinaryIO) -> None:
    lock = threading.Lock()

    def tell(**message: Any) -> None:
        with lock:
            send(reports, **message)

    try:
        factory = load(header, keeps_group=plan.processes > 1)
        from rightbatch._device import open_device

        device = open_device(header.device)
        device.prepare()
        capacity = device.capacity()
        limit = capacity if plan.memory is None else min(plan.memory, capacity)
        if plan.memory is not None:
            device.enforce(int(limit * (1 - max(header.margin, device.charge_variation))))
        teller = Teller(tell)
        ended = run(factory, plan, device, limit, teller)
    except BaseException as error:
        tell(event="broken", **failure(error.__cause__ or error))
        return
    if int(os.environ.get("RANK", "0")) == 0:
        teller.ended(ended)


def _together(header: Header, plan: RunPlan, reports: BinaryIO) -> None:
    """Processes that train together; what the first one says is passed on as it comes."""
    with tempfile.TemporaryDirectory(prefix="rightbatch-") as folder:
        told = Path(folder) / "told"
        told.write_bytes(pickle.dumps((header, plan)))
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={plan.processes}", "-m", "rightbatch._study.runs"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # by whose end they all notice that this process is gone
            stdout=subprocess.PIPE,
            env=os.environ | {TOLD: str(told)},
        ) as together:
            assert together.stdout is not None
            for line in together.stdout:
                reports.write(line)
                reports.flush()


if __name__ == "__main__":
    main()
