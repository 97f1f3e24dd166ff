"""Sources that follow scripts of frames and failures, and what takes their frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from films import PATIENCE

from rightbatch._serve.sources.feed import Feed
from rightbatch._serve.sources.frames import Frame, FrameSource, SourceSpec, Timeouts

Start = Callable[..., Feed]
Step = Callable[[], np.ndarray | None]


class Scripted:
    """A connection that does one step of a script for each read; its first one opens it."""

    def __init__(self, is_live: bool, steps: list[Step]) -> None:
        self.is_live = is_live
        self._steps = iter(steps)
        self.closed = False

    def open(self) -> None:
        next(self._steps)()

    def read(self) -> tuple[np.ndarray, float] | None:
        if self.closed:
            raise ValueError("it is closed")
        image = next(self._steps, lambda: None)()
        return None if image is None else (image, time.monotonic())

    def close(self) -> None:
        self.closed = True


def picture(value: int = 0, size: tuple[int, int] = (8, 4)) -> Step:
    return lambda: np.full((size[1], size[0], 3), value, np.uint8)


def opens() -> None:
    return None


def raises(error: Exception) -> Step:
    def step() -> None:
        raise error

    return step


def hangs(until: threading.Event) -> Step:
    def step() -> None:
        until.wait(PATIENCE)

    return step


def scripted(*connections: list[Step], is_live: bool = True) -> SourceSpec:
    """A source whose connections follow scripts; there are no more of them."""
    left = iter(connections)

    def make(timeouts: Timeouts) -> FrameSource:
        steps = next(left, [raises(OSError("nothing more"))])
        return Scripted(is_live, steps)

    return SourceSpec("scripted", "scripted:", is_live, make)


class Taker:
    """Keeps what it is delivered."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ended = 0

    def __call__(self, frame: Frame) -> None:
        self.frames.append(frame)

    def end(self) -> None:
        self.ended += 1

    @property
    def numbers(self) -> list[int]:
        return [frame.number for frame in self.frames]

    @property
    def values(self) -> list[int]:
        return [int(frame.image[0, 0, 0]) for frame in self.frames]
