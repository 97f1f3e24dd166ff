"""The worker's side of tuning: times steps, or trains a pilot and branches from its end."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, cast

import torch

from rightbatch._device.energy import joules_so_far
from rightbatch._fit.probe_worker import open_session
from rightbatch._training.distributed import Processes
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import Ability, Session, Training, require
from rightbatch._tune.branches import BranchPlan, train_branches
from rightbatch._tune.pilot import Pilot, PilotPlan
from rightbatch._worker import Header
from rightbatch._worker.bootstrap import Channel
from rightbatch._worker.failure import failure
from rightbatch._worker.limits import open_limited_device
from rightbatch._workload.normalization import ValuesPerChannel
from rightbatch._workload.sizes import Sizes


def run(channel: Channel, header: Header, training: Training) -> None:
    """Time steps or train a pilot, depending on the first command; later ones are of that kind."""
    command = channel.receive()
    try:
        if "pilot" in command:
            _pilot(channel, header, training, command)
        else:
            session, _ = open_session(channel, header, training, command["limit"])
            while command:
                channel.send(event="timed", **_timed(session, command))
                command = channel.receive()
            session.close()
    except BaseException as error:
        channel.failed(error)


def _timed(session: Session, command: dict[str, Any]) -> dict[str, Any]:
    """Run steps of one size for the command's seconds, at least one."""
    model = session.modules()[0]
    values = ValuesPerChannel(model)
    where = next(model.parameters()).device
    try:
        before, began = joules_so_far(where), time.perf_counter()
        steps: list[dict[str, float]] = []
        while not steps or time.perf_counter() - began < command["seconds"]:
            steps.append(vars(session.timed_step(command["time"], command["precision"])))
        seconds, after = time.perf_counter() - began, joules_so_far(where)
        watts = None if before is None or after is None else (after - before) / seconds
        return {
            "outcome": "ok",
            "steps": steps,
            "watts": watts,
            "values_per_channel": values.least,
        }
    except BaseException as error:
        return failure(error)
    finally:
        values.close()


def _pilot(channel: Channel, header: Header, training: Training, command: dict[str, Any]) -> None:
    """Train a pilot; the loop stays open for branches."""

    def show(text: str) -> None:
        channel.send(event="progress", text=text)

    device = open_limited_device(channel, header, command["limit"])
    fields = command["pilot"]
    plan = PilotPlan(**fields | {"sizes": Sizes(**fields["sizes"])})
    pilot = Pilot(plan, show)
    processes = Processes(torch.device(device.name))
    with training.loop(plan.loop_plan(), processes, [pilot]) as loop:
        loop.run()
        channel.send(event="pilot", **pilot.report(loop).to_dict())
        while command := channel.receive():
            require(training, Ability.BRANCH, "tune --verify")
            plans = [BranchPlan(**one) for one in command["branches"]]
            found = train_branches(cast(WorkloadLoop, loop), plans, command["examples"], show)
            channel.send(event="branches", found=[asdict(branch) for branch in found])
