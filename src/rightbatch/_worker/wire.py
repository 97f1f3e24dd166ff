"""What the two processes say to each other: one pickled header, then lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

from rightbatch._errors import UsageError


@dataclass(frozen=True)
class Header:
    """What a probe's process is told once, before it imports anything of the user's.

    `factory` is a cloudpickled factory; it is unpickled only when `sys_path` is in place.
    """

    factory: bytes
    sys_path: list[str]
    folder: str
    device: str | None
    margin: float
    seed: int
    inference: bool


def header_for(
    factory: object, *, device: str | None, margin: float, seed: int, inference: bool = False
) -> Header:
    """For processes that find modules and files as this one does.

    Raises:
        UsageError: if the factory cannot be sent to another process.
    """
    return Header(
        factory=pickled(factory),
        sys_path=[path or os.getcwd() for path in sys.path],
        folder=os.getcwd(),
        device=device,
        margin=margin,
        seed=seed,
        inference=inference,
    )


def send_bytes(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def receive_bytes(stream: BinaryIO) -> bytes:
    """Raises EOFError if the other side has gone."""
    size = stream.read(8)
    if len(size) < 8:
        raise EOFError
    return stream.read(int.from_bytes(size, "big"))


def send(stream: BinaryIO, **message: Any) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message, None if the other side has gone."""
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def pickled(factory: object) -> bytes:
    """The factory for a `Header`.

    Raises:
        UsageError: if it cannot be sent to another process.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(factory))
    except Exception as error:
        raise UsageError(
            f"the factory cannot be sent to a probe's process ({type(error).__name__}: {error}); "
            "let it open files, connections and devices itself, instead of closing over them"
        ) from error
