"""The worker's side of a run: it trains, and reports points, events and its end.

For distributed training it starts torchrun, whose processes run this module and read the plan from
a file.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.training import Reporter, train_run
from rightbatch._training.protocol import Training
from rightbatch._worker import Header
from rightbatch._worker.bootstrap import Channel, load, take_over_streams
from rightbatch._worker.failure import failure

RUN_FILE = "RIGHTBATCH_STUDY_RUN"
"""Environment variable for the processes of torchrun: the file with the header and the plan."""


def run(channel: Channel, header: Header, training: Training) -> None:
    """Train by the plan in the first command; the last report is the end of the run."""
    plan: RunPlan = pickle.loads(bytes.fromhex(channel.receive()["plan"]))
    if plan.options.processes > 1:
        _run_together(channel, header, plan)
    else:
        _train(channel, header, training, plan)


def main() -> None:
    """Run a process that torchrun started."""
    commands, reports = take_over_streams()
    header, plan = pickle.loads(Path(os.environ[RUN_FILE]).read_bytes())
    channel = Channel(commands, reports)
    try:
        training = load(header, keeps_group=True)
    except BaseException as error:
        channel.send(event="broken", **failure(error))
        return
    _train(channel, header, training, plan)


def _train(channel: Channel, header: Header, training: Training, plan: RunPlan) -> None:
    from rightbatch._device import open_device

    memory = plan.options.memory_bytes
    try:
        device = open_device(header.device)
        device.prepare()
        capacity = device.capacity()
        limit = capacity if memory is None else min(memory, capacity)
        if memory is not None:
            device.enforce(int(limit * (1 - max(header.margin, device.charge_variation))))
        ended = train_run(training, plan, device, limit, Reporter(channel.send))
    except BaseException as error:
        channel.send(event="broken", **failure(error.__cause__ or error))
        return
    if int(os.environ.get("RANK", "0")) == 0:
        Reporter(channel.send).ended(ended)


def _run_together(channel: Channel, header: Header, plan: RunPlan) -> None:
    """Start distributed processes, and forward the reports of the first one."""
    with tempfile.TemporaryDirectory(prefix="rightbatch-") as folder:
        file = Path(folder) / "run"
        file.write_bytes(pickle.dumps((header, plan)))
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={plan.options.processes}", "-m", __name__]
        environment: dict[str, Any] = os.environ | {RUN_FILE: str(file)}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closed when this process exits, which ends the others
            stdout=subprocess.PIPE,
            env=environment,
        ) as together:
            assert together.stdout is not None
            for line in together.stdout:
                channel.forward(line)


if __name__ == "__main__":
    main()
