"""The probe's process: `python -m rightbatch._worker`, driven over its standard input.

It imports and unpickles what it was sent, then waits, so that it can be started while another probe
still holds the device. With the first command it takes the device's limit, builds the session and
runs one size after the other, until it is told to stop or its parent is gone.
"""

from __future__ import annotations

import gc
import pickle
import queue
import time
from typing import Any, BinaryIO

from rightbatch._worker.bootstrap import failure, listen, load, take_over_streams
from rightbatch._worker.wire import Header, receive_bytes, send

_SETTLED = 0.002
"""Growth of the charge over half of the steps, as a share of it, that counts as none."""


def main() -> None:
    commands, reports = take_over_streams()
    header: Header = pickle.loads(receive_bytes(commands))
    inbox = listen(commands)
    try:
        factory = load(header)
    except BaseException as error:
        send(reports, event="build", **failure(error))
        return
    send(reports, event="awake")

    first = inbox.get()
    if "follow" in first:
        _follow(factory, header, first, inbox, reports)
        return
    if "pilot" in first:
        _pilot(factory, header, first, inbox, reports)
        return
    try:
        session, device = _build(header, factory, first, reports)
    except BaseException as error:
        send(reports, event="build", **failure(error))
        return
    command: dict[str, Any] = first
    while command:
        if "time" in command:
            send(reports, event="timed", **_timed(session, command))
        else:
            report = _run(session, device, command, header.inference)
            send(reports, event="probe", **report)
        command = inbox.get()
    session.close()


def _build(
    header: Header, factory: Any, first: dict[str, Any], reports: BinaryIO
) -> tuple[Any, Any]:
    from rightbatch._training.session import open_session

    device = _enforced(header, first, reports)
    session = open_session(factory, device.name, seed=header.seed, inference=header.inference)
    send(reports, event="ready", examples=session.examples)
    return session, device


def _enforced(header: Header, first: dict[str, Any], reports: BinaryIO) -> Any:
    """The device, with what may be used of it."""
    from rightbatch._device import open_device

    device = open_device(header.device)
    device.prepare()
    capacity = device.capacity()
    limit = capacity if first["limit"] is None else min(first["limit"], capacity)
    # The margin is kept by enforcing it: a size that fits below the limit leaves what is above.
    ceiling = int(limit * (1 - max(header.margin, device.charge_variation)))
    about = {"device": device.name, "capacity_bytes": capacity, "limit_bytes": limit}
    about |= {"ceiling_bytes": ceiling, "enforced": device.enforce(ceiling)}
    about["capability"] = device.capability
    send(reports, event="device", **about)
    device.reset_peak()
    return device


def _run(session: Any, device: Any, command: dict[str, Any], inference: bool) -> dict[str, Any]:
    batch_size = command["batch_size"]
    gc.collect()
    started = time.perf_counter()
    report: dict[str, Any] = {"batch_size": batch_size}
    try:
        device.reset_peak()
        step_seconds = 0.0
        charges: list[int] = []
        # A few batches of different shapes may happen to be alike.
        least = max(command["steps"], command["most_steps"] // 2 if session.varies else 0)
        brief_steps, enough_bytes = command["enough"]
        whole = True
        while len(charges) < least or (
            len(charges) < command["most_steps"] and _growing(charges) > _SETTLED * charges[-1]
        ):
            step_started = time.perf_counter()
            if inference:
                report["evaluation_batch_size"] = session.evaluate(batch_size)
            else:
                session.step(batch_size)
            # Reading synchronises, so that the time is that of the step.
            charges.append(device.read().charged_bytes)
            step_seconds = time.perf_counter() - step_started
            whole = len(charges) != brief_steps or charges[-1] >= enough_bytes
            if not whole:
                break
        if whole and not inference:
            report["evaluation_batch_size"] = session.evaluate(batch_size)
            session.step(batch_size)  # the next epoch begins with what the evaluation left
        reading = device.read()
        report |= {
            "outcome": "ok",
            "step_seconds": step_seconds,
            "peak_bytes": reading.peak_bytes,
            "charged_bytes": reading.charged_bytes,
            "growing_bytes": _growing(charges) if whole else 0,  # the first steps always grow
            "steps": len(charges),
            "whole": whole,
            "live_bytes": reading.live_bytes,
            "detail": dict(reading.detail),
        }
    except BaseException as error:
        report |= failure(error)
    report["seconds"] = time.perf_counter() - started
    return report


def _timed(session: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Steps of one size for some seconds, taken apart."""
    from rightbatch._device.energy import joules_so_far
    from rightbatch._workload.normalization import ValuesPerChannel

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


def _pilot(
    factory: Any,
    header: Header,
    first: dict[str, Any],
    inbox: queue.Queue[dict[str, Any]],
    reports: BinaryIO,
) -> None:
    """A short training of a copy, and branches from its end, request after request."""
    from rightbatch._tune.pilot import PilotPlan
    from rightbatch._tune.workload_pilot import WorkloadPilot

    def show(text: str) -> None:
        send(reports, event="shown", text=text)

    try:
        device = _enforced(header, first, reports)
        plan = PilotPlan(**first["pilot"])
        if hasattr(factory, "session"):
            report = factory.pilot(device.name, plan, show)
            pilot = None
        else:
            pilot = WorkloadPilot(factory(), device.name, plan)
            report = pilot.run(show)
    except BaseException as error:
        send(reports, event="build", **failure(error))
        return
    send(reports, event="pilot", **vars(report))
    while command := inbox.get():
        assert pilot is not None
        try:
            found = pilot.branches(command["branches"], command["examples"], show)
        except BaseException as error:
            send(reports, event="build", **failure(error))
            return
        send(reports, event="branches", found=found)


def _growing(charges: list[int]) -> int:
    """What the second half of the steps added.

    What an allocator holds beyond what is needed grows with the logarithm of the steps, where no
    two of them are alike: each doubling adds about as much as the one before.
    """
    return charges[-1] - charges[len(charges) // 2 - 1] if len(charges) > 2 else 0


def _follow(
    factory: Any,
    header: Header,
    command: dict[str, Any],
    inbox: queue.Queue[dict[str, Any]],
    reports: BinaryIO,
) -> None:
    """Answer what a step allocates, request after request, without running it for real."""
    from rightbatch._predict.build import limit_building
    from rightbatch._predict.follow import Follower
    from rightbatch._predict.forked_traces import answers
    from rightbatch._predict.variant import Variant

    try:
        limit_building()
        follower: Any = None
        if hasattr(factory, "session"):
            from rightbatch._predict.follow_framework import SessionFollower

            follower = SessionFollower(factory)
        else:
            follower = Follower(factory, seed=header.seed)
    except BaseException as error:
        send(reports, event="follow", answers=[failure(error)] * len(command["follow"]))
        return
    gc.freeze()  # what was imported is not garbage; every trace collects before it begins
    while True:
        tasks = [(task.pop("batch_size"), Variant(**task)) for task in command["follow"]]
        found = answers(follower, tasks, failure)
        about = {"how": follower.how, "notes": follower.notes, "examples": follower.examples}
        send(reports, event="follow", answers=found, at_least=follower.at_least, **about)
        command = inbox.get()


if __name__ == "__main__":
    main()
