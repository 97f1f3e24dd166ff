"""The pipeline of one source: from its feed to the engine, and from there to the writer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import Contract, Served
from rightbatch._serve.redaction import describe_error
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.writer import Writer
from rightbatch._serve.snapshots import Snapshots
from rightbatch._serve.sources.feed import Feed
from rightbatch._serve.sources.frames import Frame, SourceSpec, SourceStopped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_POLL = 0.2  # seconds between two checks of whether it was stopped


class SourcePipeline:
    """Passes the frames of one source to the engine and their results to the writer.

    Args:
        spec: the source.
        name: of the stream that is opened in the engine.
        contract: see `Engine.open_stream`; by default `freshest` for live sources, else `every`.
        weight: see `Engine.open_stream`.
        batcher: the engine.
        writer: receives a line for each result.
        on_failure: called with (source, frame number, error) when the model fails on a frame.
        options: of `Feed`.
    """

    def __init__(
        self,
        spec: SourceSpec,
        name: str,
        contract: Contract | None,
        weight: float | None,
        batcher: Batcher,
        writer: Writer,
        on_failure: Callable[[str, int, BaseException], None],
        **options: Any,
    ) -> None:
        self.name = name
        self.spec = spec
        self.contract: Contract = contract or ("freshest" if spec.is_live else "every")
        self.weight = weight
        self._batcher = batcher
        self._writer = writer
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._pending = 0  # frames without an outcome
        self._stopping = False
        self._newest: NDArray[np.uint8] | None = None
        self._snapshots = Snapshots()
        self._feed = Feed(spec, self._deliver, name=name, **options)
        batcher.open_stream(name, contract=self.contract, weight=weight)

    def start(self) -> None:
        """Start reading; return at once."""
        self._feed.start()

    def stop(self, timeout: float) -> None:
        """Stop reading. To stop many, call it with timeout 0 for all, then wait for each."""
        self._stopping = True
        self._feed.stop(timeout)

    @property
    def is_over(self) -> bool:
        """Whether the source has ended and each of its frames has an outcome."""
        ended = self._feed.status().state in ("ended", "failed", "stopped")
        with self._lock:
            return ended and not self._pending

    def status(self) -> dict[str, Any]:
        """Return the state of the source and the counts of its frames."""
        feed = asdict(self._feed.status())
        counts = self._batcher.counters.of(self.name)
        counts["served_per_second"] = counts.pop("frames_per_second")
        return {
            "name": self.name,
            "url": self.spec.url,
            "live": self.spec.is_live,
            "contract": self.contract,
            "weight": self.weight,
            **feed,
            **counts,
        }

    def snapshot(self) -> bytes | None:
        """Return the newest frame as a small JPEG, if there is one."""
        return None if self._newest is None else self._snapshots.of(self._newest)

    def _deliver(self, frame: Frame) -> None:
        """Queue a frame; called on the reader's thread, blocks if no frame may be lost."""
        self._newest = frame.image
        captured = time.time() - (time.monotonic() - frame.captured)
        if self.contract == "every":
            while not self._writer.wait_for_room(_POLL):
                if self._stopping:
                    raise SourceStopped
        with self._lock:
            self._pending += 1

        def done(outcome: Served | BaseException) -> None:
            self._done(frame.number, captured, outcome)

        # The frames of a file wait to be read, which is not latency: they arrive now.
        arrived = frame.captured if self.spec.is_live else None
        try:
            self._batcher.put(self.name, frame.image, done, arrived)
        except LateError as error:
            self._finish_frame()
            if error.cause == "closing":
                raise SourceStopped from None

    def _done(self, number: int, captured: float, outcome: Served | BaseException) -> None:
        """Write a line for an outcome; called on the engine's thread."""
        line: Line | None = None
        if isinstance(outcome, Served):
            latency = 1000 * outcome.latency
            size, reason = outcome.batch_size, outcome.reason
            line = Line(self.name, number, captured, latency, size, outcome.result, reason)
        elif not isinstance(outcome, LateError):  # dropped frames are counted and have no line
            self._on_failure(self.name, number, outcome)
            error = f"{type(outcome).__name__}: {describe_error(outcome)}"
            line = Line(self.name, number, captured, None, None, None, error=error)
        if line is not None:
            self._writer.put(line, patient=self.contract == "every")
        self._finish_frame()

    def _finish_frame(self) -> None:
        with self._lock:
            self._pending -= 1
