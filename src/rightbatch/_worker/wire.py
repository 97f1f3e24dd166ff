"""The messages between a worker and its parent: one pickled header, then lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from rightbatch._errors import UsageError


class Subject(Protocol):
    """The object that a worker uses; it is unpickled there, and loaded before any measurement."""

    def load(self) -> Any:
        """Import dependencies, and return the argument of the entry."""


@dataclass(frozen=True)
class Header:
    """The first message to a worker, before it imports the user's code.

    `entry` is the `module:function` that it runs. `subject` is a cloudpickled `Subject`; it is
    unpickled only when `sys_path` is in place.
    """

    entry: str
    subject: bytes
    sys_path: list[str]
    folder: str
    device: str | None
    margin: float
    seed: int
    inference: bool


def header_for(
    subject: Subject,
    *,
    device: str | None,
    margin: float,
    seed: int,
    inference: bool = False,
    entry: str = "",
) -> Header:
    """Return a header for processes with the `sys.path` and working directory of this one.

    Raises:
        UsageError: if the subject cannot be sent to another process.
    """
    return Header(
        entry=entry,
        subject=pickled(subject),
        sys_path=[path or os.getcwd() for path in sys.path],
        folder=os.getcwd(),
        device=device,
        margin=margin,
        seed=seed,
        inference=inference,
    )


def send_bytes(stream: BinaryIO, data: bytes) -> None:
    """Write bytes, preceded by their length."""
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def receive_bytes(stream: BinaryIO) -> bytes:
    """Read what `send_bytes` wrote.

    Raises:
        EOFError: if the other process has exited.
    """
    size = stream.read(8)
    if len(size) < 8:
        raise EOFError
    return stream.read(int.from_bytes(size, "big"))


def send(stream: BinaryIO, **message: Any) -> None:
    """Write a message as a line of JSON."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next message; None if the other process has exited."""
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def pickled(subject: object) -> bytes:
    """Pickle the subject for a `Header`.

    Raises:
        UsageError: if it cannot be sent to another process.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(subject))
    except Exception as error:
        raise UsageError(
            f"the factory cannot be sent to a worker process ({type(error).__name__}: {error}); "
            "open files, connections and devices inside the factory, not in its closure"
        ) from error
