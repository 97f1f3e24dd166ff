"""The worker's side of a probe: runs one size after another until the parent closes it."""

from __future__ import annotations

import gc
import time
from typing import Any

import rightbatch._training.session  # noqa: F401  imported before the base is measured
from rightbatch._training.protocol import Session, Training
from rightbatch._worker import Header
from rightbatch._worker.bootstrap import Channel
from rightbatch._worker.failure import failure
from rightbatch._worker.limits import open_limited_device

_SETTLED = 0.002
"""Growth of the charge over half of the steps, as a share of it, that counts as no growth."""


def run(channel: Channel, header: Header, training: Training) -> None:
    """Open a session with the first command's limit, and answer commands."""
    command = channel.receive()
    try:
        session, device = open_session(channel, header, training, command["limit"])
    except BaseException as error:
        channel.failed(error)
        return
    while command:
        report = _probe(session, device, command, inference=header.inference)
        channel.send(event="probe", **report)
        command = channel.receive()
    session.close()


def open_session(
    channel: Channel, header: Header, training: Training, limit: int | None
) -> tuple[Session, Any]:
    """Open the device with a limit (bytes) and a session on it, and report both."""
    device = open_limited_device(channel, header, limit)
    session = training.session(device.name, seed=header.seed, inference=header.inference)
    channel.send(event="ready", examples=session.examples, notes=list(session.notes))
    return session, device


def _probe(
    session: Session, device: Any, command: dict[str, Any], *, inference: bool
) -> dict[str, Any]:
    batch_size = command["batch_size"]
    gc.collect()
    started = time.perf_counter()
    report: dict[str, Any] = {"batch_size": batch_size}
    try:
        device.reset_peak()
        step_seconds = 0.0
        charges: list[int] = []
        # A few batches of different shapes may happen to have the same shape.
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
            # Reading synchronises, so the time includes all of the step's work.
            charges.append(device.read().charged_bytes)
            step_seconds = time.perf_counter() - step_started
            whole = len(charges) != brief_steps or charges[-1] >= enough_bytes
            if not whole:
                break
        if whole and not inference:
            report["evaluation_batch_size"] = session.evaluate(batch_size)
            session.step(batch_size)  # the next epoch starts after an evaluation
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


def _growing(charges: list[int]) -> int:
    """Return the bytes that the second half of the steps added.

    If steps differ in shape, what an allocator holds beyond the tensors grows with the logarithm of
    the steps: each doubling adds about as much as the one before.
    """
    return charges[-1] - charges[len(charges) // 2 - 1] if len(charges) > 2 else 0
