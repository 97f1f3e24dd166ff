"""Supervise one source: a reader thread reads it, a watcher thread detects stalls and reconnects.

The reader may hang in a decoder or on the network. The watcher then abandons it, ignores whatever
it still delivers, and reconnects after a pause that grows with each failure. Sources do not wait
for each other.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from rightbatch._serve.redaction import describe_error
from rightbatch._serve.sources.frames import (
    DamagedFrameError,
    Frame,
    FrameSource,
    SourceSpec,
    SourceStopped,
    Timeouts,
)
from rightbatch._serve.sources.isolated import IsolatedSource, pickle_for_process

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

State = Literal["connecting", "running", "waiting", "ended", "failed", "stopped"]

_FIRST_FRAME = 10.0
"""Seconds from a successful connection to the first frame. A decoder starts at a key frame, which
some cameras send every few seconds only (assumption: every 10 s at least)."""

_RATE_WINDOW = 5.0  # seconds


@dataclass(frozen=True)
class FeedStatus:
    """The state of a source.

    `reconnects` counts connections with frames after the first, `broken` damaged frames that were
    skipped. `error` is the last error since the source last started to run; `size` is (width,
    height) in pixels, `last_frame_age` in seconds.
    """

    state: State
    frames: int = 0
    reconnects: int = 0
    broken: int = 0
    error: str | None = None
    size: tuple[int, int] | None = None
    frames_per_second: float = 0.0
    last_frame_age: float | None = None


@dataclass(eq=False)
class _Attempt:
    """One connection; once it is `void`, its frames are ignored."""

    until: float  # when a live source is abandoned, unless a frame arrives
    source: FrameSource | None = None
    is_open: bool = False
    frames: int = 0
    delivering: bool = False  # the consumer is busy: not a stall of the source
    error: str | None = None
    over: bool = False
    void: bool = False


class Feed:
    """Calls `deliver` with the frames of one source, in order, until it ends or is stopped.

    A live source is reconnected whenever it fails. Any other source ends once, or fails with an
    error; `on_end` is called in both cases. `deliver` runs on the reader's thread, may block for
    files, and raises `SourceStopped` when no more frames are wanted.

    Args:
        spec: the result of `open_source`.
        deliver: called with each frame.
        name: of the threads; by default the spec's.
        isolated: read in a process of its own, which is killed when it hangs.
        open_timeout: seconds to connect.
        stall_after: seconds without a frame after which a live source is reconnected.
        first_retry: longest pause after the first failure, in seconds; doubled with each failure.
        last_retry: upper limit of the pause. A camera that comes back is connected within this time
            plus the time to connect and to receive a key frame.
        on_end: called once, on the feed's thread.

    Raises:
        UsageError: if `isolated` is set and the source cannot be pickled.
    """

    def __init__(
        self,
        spec: SourceSpec,
        deliver: Callable[[Frame], None],
        *,
        name: str | None = None,
        isolated: bool = False,
        open_timeout: float = 5.0,
        stall_after: float = 3.0,
        first_retry: float = 0.5,
        last_retry: float = 2.0,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.spec = spec
        self.name = name or spec.name
        self._deliver = deliver
        self._on_end = on_end
        self._stall_after = stall_after
        self._retries = (first_retry, last_retry)
        timeouts = Timeouts(open_timeout, stall_after)
        # Connecting has two steps, each with its own timeout: to connect, and to probe the stream.
        # An isolated source starts a process first.
        self._connect_within = 2 * open_timeout + stall_after + (10.0 if isolated else 0.0)
        if isolated:
            pickle_for_process(spec, timeouts)
        make: Callable[[], FrameSource] = partial(spec.make, timeouts)
        self._make = partial(IsolatedSource, spec, timeouts) if isolated else make
        self._changed = threading.Condition()
        self._stopping = False
        self._state: State = "connecting"
        self._frames = self._broken = self._reconnects = 0
        self._error: str | None = None
        self._size: tuple[int, int] | None = None
        self._arrivals: deque[float] = deque(maxlen=1000)
        self._reader: threading.Thread | None = None
        self._watcher = threading.Thread(target=self._watch, name=f"feed {self.name}", daemon=True)

    def start(self) -> None:
        """Start reading; return at once."""
        self._watcher.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop reading. To stop many feeds, call it with timeout 0 for all, then wait for each."""
        until = time.monotonic() + timeout
        with self._changed:
            self._stopping = True
            if self._watcher.ident is None:
                self._state = "stopped"
            self._changed.notify_all()
        _join(self._watcher, until)
        if self._reader is not None:  # the last one, once the watcher has ended
            _join(self._reader, until)

    def status(self) -> FeedStatus:
        """Return the current state."""
        with self._changed:
            now = time.monotonic()
            recent = sum(1 for at in self._arrivals if at > now - _RATE_WINDOW)
            span = min(_RATE_WINDOW, now - self._arrivals[0]) if self._arrivals else 0.0
            return FeedStatus(
                state=self._state,
                frames=self._frames,
                reconnects=self._reconnects,
                broken=self._broken,
                error=self._error,
                size=self._size,
                frames_per_second=recent / span if span > 0 else 0.0,
                last_frame_age=now - self._arrivals[-1] if self._arrivals else None,
            )

    def _watch(self) -> None:
        """Run the watcher's thread: one connection after the other."""
        failures = 0
        while not self._stopping:
            attempt = self._begin()
            self._wait_for(attempt)
            failures = 1 if attempt.frames else failures + 1
            with self._changed:
                if self._stopping:
                    break
                if not self.spec.is_live:
                    self._error = attempt.error or self._error  # or that of a damaged frame
                    self._state = "failed" if attempt.error else "ended"
                    break
                self._error = attempt.error or "the stream ended"
                self._state = "waiting"
                pause = pause_after(failures, *self._retries, random.random())
                self._changed.wait_for(lambda: self._stopping, pause)
        if self._state not in ("ended", "failed"):
            self._state = "stopped"
        elif self._on_end is not None:
            self._on_end()

    def _begin(self) -> _Attempt:
        attempt = _Attempt(until=time.monotonic() + self._connect_within)
        self._state = "connecting"
        self._reader = threading.Thread(
            target=self._read, args=(attempt,), name=f"reader {self.name}", daemon=True
        )
        self._reader.start()
        return attempt

    def _wait_for(self, attempt: _Attempt) -> None:
        """Wait until the connection ends, stalls or is stopped."""
        with self._changed:
            while not (attempt.over or self._stopping):
                now = time.monotonic()
                if attempt.delivering:
                    attempt.until = now + self._stall_after
                if self.spec.is_live and attempt.until <= now:
                    attempt.error = self._stall_error(attempt)
                    break
                self._changed.wait(attempt.until - now if self.spec.is_live else None)
            attempt.void = True
            source = None if attempt.over else attempt.source
        if source is not None:
            source.close()

    def _stall_error(self, attempt: _Attempt) -> str:
        if attempt.frames:
            return f"no frame for {self._stall_after:g} s"
        return "connected, but received no frame" if attempt.is_open else "no answer"

    def _read(self, attempt: _Attempt) -> None:
        """Run a reader's thread: one connection from opening to end."""
        error = None
        try:
            source = self._make()
            with self._changed:
                attempt.source = source
                wanted = not attempt.void
            try:
                if wanted:
                    source.open()
                    attempt.is_open = True
                    self._expect(attempt, within=max(self._stall_after, _FIRST_FRAME))
                while not attempt.void:
                    try:
                        found = source.read()
                    except DamagedFrameError as broken:
                        self._note_broken(attempt, broken)
                        continue
                    if found is None:
                        break
                    self._hand_over(attempt, *found)
            finally:
                source.close()
        except SourceStopped:
            self._stopping = True
        except BaseException as raised:  # a user's iterator may raise SystemExit
            error = describe_error(raised)
        with self._changed:
            if not attempt.void:
                attempt.error = error
            attempt.over = True
            self._changed.notify_all()

    def _note_broken(self, attempt: _Attempt, broken: DamagedFrameError) -> None:
        with self._changed:
            if not attempt.void:
                self._broken += 1
                self._error = describe_error(broken)

    def _hand_over(self, attempt: _Attempt, image: NDArray[np.uint8], captured: float) -> None:
        size = (image.shape[1], image.shape[0])
        with self._changed:
            if attempt.void:
                return
            # While delivering it cannot become void, so no other connection delivers meanwhile.
            attempt.delivering = True
            if not attempt.frames:
                self._state = "running"
                self._error = None
                self._reconnects += self._frames > 0
            # A picture that could not be read keeps its number.
            number = self._frames + (0 if self.spec.is_live else self._broken)
            frame = Frame(image, number, captured)
            attempt.frames += 1
            self._frames += 1
            self._arrivals.append(time.monotonic())
            self._size = size
        try:
            self._deliver(frame)
        finally:
            self._expect(attempt, within=self._stall_after)

    def _expect(self, attempt: _Attempt, within: float) -> None:
        """Set the time limit for the next frame; the last one is no longer being delivered."""
        with self._changed:
            attempt.delivering = False
            until = time.monotonic() + within
            if until < attempt.until:
                self._changed.notify_all()  # the watcher sleeps until the old limit
            attempt.until = until


def _join(thread: threading.Thread, until: float) -> None:
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(max(0.0, until - time.monotonic()))


def pause_after(failures: int, first: float, last: float, chance: float) -> float:
    """Return the seconds before the next attempt: exponential backoff with jitter.

    The jitter keeps cameras that failed together from reconnecting at the same moment. `chance` is
    uniform in [0, 1); the pause is at least half of the longest one.
    """
    longest: float = min(last, first * 2.0 ** min(failures - 1, 30))
    return longest * (0.5 + 0.5 * chance)
