"""`Server`: sources, one engine, sinks, and an HTTP server with a page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._progress import Live
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import REQUESTS, Contract
from rightbatch._serve.models.open import open_model
from rightbatch._serve.pipeline import SourcePipeline
from rightbatch._serve.redaction import printable
from rightbatch._serve.sinks.in_process import IterationSink
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.open import Destination, open_sinks
from rightbatch._serve.sinks.writer import Writer
from rightbatch._serve.sources.allowed import MOST_SOURCES, AllowedSources
from rightbatch._serve.sources.open import open_source

if TYPE_CHECKING:
    from rightbatch._serve.web.http import HttpServer


_POLL = 0.1  # seconds between two checks of whether it is over


class Server:
    """Runs a model on the frames of sources and on HTTP requests, and writes the results.

    It runs from its construction on; `rb.serve` constructs one with its sources. A `with` block
    stops it at the end. Without `to`, iterate over it to get the results.

    Args:
        model: an argument of `open_model`: a function on a list of H×W×3 uint8 RGB arrays, a torch
            module, `"file.py:function"`, `"yolo26n.onnx"`, `"yolo26n.pt"`.
        latency: target from a frame's capture to its result: seconds, or text like `"100ms"`.
        to: a file, a stream, a function called with every `Line`, `"mqtt://..."`, or several.
        device: where the model runs, if it does not choose its own device.
        max_batch: the most images in a batch.
        memory: limit for batches (`"2GiB"`); `fit` measures how many images of the first frame's
            size it holds.
        isolated: read each source in a process of its own, which is killed when it hangs.
        stall_after: seconds without a frame after which a live source is reconnected.
        allow_source: what the page may open besides the sources that were added here: folders,
            schemes (`"rtsp:"`) and URLs (`"http://hall/"`, with all that is below).
        progress: show the progress of the calibration on a terminal.
        on_calibrated: called with the `Calibration` when it is known.
        options: of the model's integration (`imgsz=`, `conf=`, `threads=`).

    Raises:
        UsageError: if an argument is invalid.
        MissingExtraError: if a required package is not installed.
    """

    def __init__(
        self,
        model: Any,
        latency: float | str,
        *,
        to: Destination | Sequence[Destination] | None = None,
        device: str | None = None,
        max_batch: int | None = None,
        memory: int | str | None = None,
        isolated: bool = False,
        stall_after: float = 3.0,
        allow_source: Sequence[str] = (),
        progress: bool = True,
        on_calibrated: Callable[[Any], object] = lambda calibration: None,
        **options: Any,
    ) -> None:
        self._model_arguments = (model, {"device": device, "max_batch": max_batch, **options})
        self._memory = memory
        self._allowed = AllowedSources(allow_source)
        self._feed_options = {"isolated": isolated, "stall_after": stall_after}
        self._progress = progress
        self._on_calibrated = on_calibrated
        self._since = time.time()
        self._state = "starting"
        self._lock = threading.Lock()
        self._pipelines: dict[str, SourcePipeline] = {}
        self._removing: set[str] = set()  # names of sources that are being removed
        self._http: HttpServer | None = None
        self._app: Any = None
        self.failures = 0  # frames for which the model raised an error
        self.first_failure: tuple[str, int, BaseException] | None = None
        self.fatal_error: RightbatchError | None = None  # why no frame can ever be served
        self._iteration_sink = IterationSink() if to is None else None
        if memory is not None:
            from rightbatch._serve.models.memory import check_memory

            check_memory(memory, model, device)
        self._model = open_model(model, device=device, **options)
        try:
            self.batcher = Batcher(
                self._model,
                latency,
                sizes=self._model.sizes,
                max_batch=max_batch,
                on_first=self._calibrate,
            )
            sinks = [self._iteration_sink] if self._iteration_sink is not None else open_sinks(to)
        except BaseException:
            self._model.close()
            raise
        self.reader_gone = threading.Event()
        self._writer = Writer(sinks, on_broken=self.reader_gone.set)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def device(self) -> str | None:
        """Where the model runs, if it is known."""
        return getattr(self._model, "device", None)

    @property
    def model_note(self) -> str | None:
        """What is to be said about the model: why its batches are fixed, if that is unexpected."""
        return getattr(self._model, "note", None)

    def add(
        self,
        source: Any,
        *,
        name: str | None = None,
        contract: Contract | None = None,
        weight: float | None = None,
        isolated: bool | None = None,
    ) -> str:
        """Add a source; return its name.

        Args:
            source: a URL, a file, a folder of pictures, a webcam, or an iterable of arrays.
            name: by default derived from the source.
            contract: `every` loses no frame, `freshest` keeps the newest, `deadline` keeps a frame
                until it would be late. Default: `freshest` for live sources, `every` for others.
            weight: share of the device relative to other sources when it is overloaded.
            isolated: overrides the server's setting.

        Raises:
            UsageError: if the source does not exist, or the name is taken.
        """
        spec = open_source(source)
        self._allowed.name(source)
        if name is not None and name != printable(name):
            raise UsageError(f"source name {printable(name)!r} has control characters")
        feed_options = self._feed_options | ({} if isolated is None else {"isolated": isolated})
        with self._lock:
            if self._state in ("stopping", "stopped"):
                raise UsageError("the server has stopped; start another one")
            name = self._free_name(spec.name) if name is None else name
            if name in ("", ".", "..", REQUESTS) or self._is_taken(name):
                problem = "exists already" if self._is_taken(name) else "is not a valid name"
                raise UsageError(f"source {name!r} {problem}; choose another name")
            intake = SourcePipeline(
                spec,
                name,
                contract,
                weight,
                self.batcher,
                self._writer,
                self._failed,
                **feed_options,
            )
            self._pipelines[name] = intake
            if self._state == "starting":
                self._state = "serving"
        intake.start()
        return name

    def add_from_page(
        self,
        source: str | int,
        *,
        name: str | None = None,
        contract: Contract | None = None,
        weight: float | None = None,
    ) -> str:
        """Add a source that the page asks for; arguments as for `add`.

        Raises:
            UsageError: if the page may not open it, there are too many, or as `add`.
        """
        self._allowed.check(source)
        with self._lock:
            count = len(self._pipelines) + len(self._removing)
        if count >= MOST_SOURCES:
            raise UsageError(f"there are {count} sources already; remove one first")
        return self.add(source, name=name, contract=contract, weight=weight)

    def remove(self, name: str) -> None:
        """Remove a source; its waiting frames are dropped.

        Raises:
            UsageError: if there is no source of that name.
        """
        with self._lock:
            intake = self._pipelines.pop(name, None)
            known = ", ".join(sorted(self._pipelines)) or "none"
            if intake is not None:
                self._removing.add(name)
        if intake is None:
            raise UsageError(f"no source {name!r}; sources: {known}")
        intake.stop(0)
        self.batcher.close_stream(name)
        intake.stop(1.0)
        with suppress(UsageError):  # a frame in flight may have opened it again
            self.batcher.close_stream(name)
        with self._lock:
            self._removing.discard(name)

    def listen(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        token: str | None = None,
        predict: bool = True,
        hosts: Collection[str] | None = None,
    ) -> str:
        """Start the HTTP server with the page, `/metrics` and `/predict`; return its URL.

        Args:
            port: 0 chooses a free one.
            host: bind address; a non-loopback address requires a token.
            token: that requests must send.
            predict: whether `/predict` accepts images.
            hosts: accepted values of the Host header; by default the names of this machine.

        Raises:
            UsageError: if it cannot listen there, or a token is missing.
            MissingExtraError: if FastAPI is not installed.
        """
        from rightbatch._serve.web.http import HttpServer, make_app
        from rightbatch._web.access import is_this_machine

        if token is None and not is_this_machine(host):
            raise UsageError(
                f"{host} can be reached from other machines: pass a token that requests must send"
            )
        if self._http is not None:
            raise UsageError(f"the server listens already, at {self._http.url}")
        http = HttpServer().bind(host, port)  # first, since an application registers listeners
        self._app = make_app(self, token=token, predict=predict, hosts=hosts)
        self._http = http.start(self._app)
        if self._state == "starting":
            self._state = "serving"
        return self._http.url

    @property
    def url(self) -> str | None:
        """The URL of the HTTP server, if it runs."""
        return None if self._http is None else self._http.url

    def status(self) -> dict[str, Any]:
        """Return all that the page shows; times are seconds, or milliseconds in names with `ms`."""
        batcher = self.batcher
        with self._lock:
            intakes = list(self._pipelines.values())
        requests = batcher.counters.of(REQUESTS) if REQUESTS in batcher.counters else None
        if requests is not None:
            requests["served_per_second"] = requests.pop("frames_per_second")
        calibration = batcher.calibration
        return {
            "model": self.name,
            "state": self._state,
            "since": self._since,
            "latency_target_ms": 1000 * batcher.latency,
            "calibration": None if calibration is None else calibration.to_dict(),
            "largest_batch": batcher.largest_batch,
            "waiting": batcher.waiting,
            "oldest_ms": round(1000 * batcher.oldest(), 2),
            "seconds_without_success": round(batcher.attainment.seconds_without_success, 1),
            "total": batcher.counters.total(),
            "sources": [intake.status() for intake in intakes],
            "requests": requests,
            "batches": batcher.counters.batches(),
            "written": self._writer.status(),
        }

    def snapshot(self, name: str) -> bytes | None:
        """Return a source's newest frame as a JPEG of at most 640×480, if there is one.

        Raises:
            UsageError: if there is no source of that name.
        """
        with self._lock:
            intake = self._pipelines.get(name)
        if intake is None:
            raise UsageError(f"no source {name!r}")
        return intake.snapshot()

    @property
    def is_over(self) -> bool:
        """Whether all sources (at least one) have ended and all results are written, or whether no
        frame can ever be served since nothing fits in memory."""
        with self._lock:
            intakes = list(self._pipelines.values())
        if self.fatal_error is not None:
            return True
        return bool(intakes) and all(i.is_over for i in intakes) and self._writer.is_idle

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over or stopped; False after `timeout` seconds.

        Without `to`, another thread must iterate meanwhile: the frames of a file wait for it.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not (self.is_over or self._state == "stopped"):
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(_POLL)
        return True

    def __iter__(self) -> Iterator[Line]:
        """Yield every result as it arrives, until it is over.

        Raises:
            UsageError: if `to` was given.
        """
        if self._iteration_sink is None:
            raise UsageError("results are written to `to`; leave it out to iterate over them")
        while True:
            line = self._iteration_sink.get(_POLL)
            if line is not None:
                yield line
            elif self.is_over or self._state == "stopped":
                # A line may have arrived after the last check.
                while (line := self._iteration_sink.get(0)) is not None:
                    yield line
                if self.fatal_error is not None:
                    raise self.fatal_error
                return

    def stop(self, timeout: float = 5.0) -> int:
        """Stop accepting frames, finish those accepted, for at most `timeout` seconds.

        Return the number of accepted frames without a result plus results not written. May be
        called twice.
        """
        with self._lock:
            if self._state == "stopped":
                return 0
            self._state = "stopping"  # also if an earlier stop was interrupted
            intakes = list(self._pipelines.values())
        until = time.monotonic() + timeout
        for intake in intakes:
            intake.stop(0)
        if self._http is not None:
            self._http.stop(max(0.1, until - time.monotonic()))  # answers accepted requests
            predictor = getattr(self._app.state, "predictor", None)
            if predictor is not None:
                predictor.close()
        if self._iteration_sink is not None:
            self._iteration_sink.close()  # the thread that stops may be the one that iterates
        left = self.batcher.close(max(0.0, until - time.monotonic()))
        for intake in intakes:
            intake.stop(max(0.1, until - time.monotonic()))
        left += self._writer.close(max(0.1, until - time.monotonic()))
        if self.batcher.is_running:  # the model has not returned yet
            threading.Thread(target=self._close_later, daemon=True).start()
        else:
            self._model.close()
        self._state = "stopped"
        return left

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _close_later(self) -> None:
        self.batcher.join()
        self._model.close()

    def _calibrate(self, first: Any) -> None:
        """Calibrate on the first frame; called on the engine's thread."""
        with Live("calibrating", enabled=self._progress) as live:
            if self._memory is not None:
                live.show(f"finding the largest batch within {self._memory}")
                self.batcher.limit_batch(self._largest_batch(self._memory, first.shape))
                self._memory = None
            calibration = self.batcher.calibrate(first, live.show)
        self._on_calibrated(calibration)

    def _largest_batch(self, memory: int | str, shape: tuple[int, ...]) -> int:
        from rightbatch._serve.models.memory import largest_batch_within

        if self.fatal_error is not None:  # holds for every frame
            raise self.fatal_error
        model, options = self._model_arguments
        try:
            return largest_batch_within(memory, model, shape, **options).batch_size
        except RightbatchError as error:
            self.fatal_error = error
            raise

    def _failed(self, source: str, frame: int, error: BaseException) -> None:
        self.failures += 1
        self.first_failure = self.first_failure or (source, frame, error)

    def _is_taken(self, name: str) -> bool:
        return name in self._pipelines or name in self._removing

    def _free_name(self, preferred: str) -> str:
        name, number = preferred, 1
        while self._is_taken(name) or name == REQUESTS:
            number += 1
            name = f"{preferred}-{number}"
        return name
