"""`rightbatch serve`: run a server until its sources end or a signal arrives.

Results go to stdout (or --to), messages to stderr.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from typing import Any, TextIO

from rightbatch._errors import MissingExtraError, UsageError, WorkloadError
from rightbatch._progress import Live
from rightbatch._serve.engine.calibration import Calibration
from rightbatch._serve.engine.records import Contract
from rightbatch._serve.server import Server
from rightbatch._serve.signals import Signalled, signals
from rightbatch._units import parse_seconds
from rightbatch._web.access import is_this_machine

PAGE_PORT = 8470  # default port of the page
_POLL = 0.2  # seconds between two checks of the server


def run(
    model: str,
    latency: str,
    *,
    sources: Sequence[str],
    to: Sequence[str],
    http: int | None,
    page: bool,
    host: str,
    token: str | None,
    contract: Contract | None,
    stop_within: str,
    say: Any,
    **options: Any,
) -> dict[str, Any]:
    """Serve; return the server's last `status`, with the number of unfinished frames as `left`.

    Raises:
        WorkloadError: if the model failed on every frame.
        UsageError: if an argument is invalid, or a file cannot be read.
        KeyboardInterrupt: after Ctrl-C, when the accepted frames are finished.
    """
    if not sources and http is None:
        raise UsageError("nothing to serve: pass --source, or --http PORT for images over HTTP")
    finish_within = parse_seconds(stop_within)
    waits_for_requests = http is not None

    def show_calibration(calibration: Calibration) -> None:
        where = f" on {server.device}" if server.device else ""
        say(f"{server.name}{where} within {1000 * calibration.latency:g} ms: {calibration}")
        if server.model_note:
            say(f"{server.name}: {server.model_note}")

    left = 0
    with signals() as signalled, _results_only() as stdout:
        destinations = [stdout if place == "-" else place for place in to or ("-",)]
        shows_progress = bool(to) and "-" not in to  # else it would mix with the results
        server = Server(
            model,
            latency,
            to=destinations,
            on_calibrated=show_calibration,
            progress=not shows_progress,
            **options,
        )
        try:
            for source in sources:
                server.add(source, contract=contract)
            _listen(server, http, page, host, token, say)
            _wait(server, signalled, waits_for_requests, shows_progress)
        finally:
            left = server.stop(finish_within)
    status = server.status()
    for source in status["sources"]:
        if source["broken"] and not source["live"]:
            say(
                f"{source['name']}: {source['broken']} file(s) or frame(s) could not be read; "
                f"last error: {source['error']}"
            )
    written = status["written"]
    left_out = 0 if server.reader_gone.is_set() else written["left_out"]
    if left_out:
        say(f"{left_out} line(s) were not written: {written['error'] or 'queue full'}")
    if left:
        say(f"stopped with {left} accepted frame(s) unfinished after {stop_within}")
    _raise_failure(server, status)
    if written["error"] and left_out and not written["lines"]:
        raise UsageError(f"no result was written: {written['error']}")
    if signalled.number == signal.SIGINT:
        raise KeyboardInterrupt("interrupted" if left else "interrupted; all frames are finished")
    return status | {"left": left}


def _listen(
    server: Server, http: int | None, page: bool, host: str, token: str | None, say: Any
) -> None:
    if http is None and not page:
        return
    if token is None and not is_this_machine(host):
        token = secrets.token_urlsafe(24)
        say(f"requests must send this token: Authorization: Bearer {token}")
    options: dict[str, Any] = {"host": host, "token": token, "predict": http is not None}
    try:
        if http is not None:
            url = server.listen(http, **options)
            say(f"POST images to {url}/predict; the page is {_page_url(url, token)}")
            return
        try:
            url = server.listen(PAGE_PORT, **options)
        except UsageError:
            url = server.listen(0, **options)
        say(f"the page is {_page_url(url, token)}")
    except MissingExtraError as error:
        if http is not None:
            raise
        say(f"no page: {error}")


def _page_url(url: str, token: str | None) -> str:
    return url if token is None else f"{url}/?token={token}"


def _wait(
    server: Server, signalled: Signalled, waits_for_requests: bool, shows_progress: bool
) -> None:
    """Wait until the server is over, a signal arrives, or the reader of the results has gone."""
    failed = False
    with Live("serving", enabled=shows_progress) as live:
        while not signalled.wait(_POLL):
            if shows_progress:
                live.show(_progress(server.status()))
            if server.fatal_error is not None:
                return
            if server.reader_gone.is_set() and not waits_for_requests:
                return
            if server.first_failure is not None and not failed:
                failed = True
                source, frame, error = server.first_failure
                live.note(f"the model failed on frame {frame} of {source}: {error!r}")
            if server.is_over and not waits_for_requests:
                return


def _progress(status: dict[str, Any]) -> str:
    if status["calibration"] is None and status["waiting"]:
        return "calibrating"
    rate = sum(source["served_per_second"] for source in status["sources"])
    slowest = max((s["latency_ms"]["p99"] or 0 for s in status["sources"]), default=0)
    running = sum(source["state"] == "running" for source in status["sources"])
    dropped = sum(status["total"]["dropped"].values())
    return (
        f"{running} of {len(status['sources'])} sources, {rate:.1f} frames/s, "
        f"p99 {slowest:.0f} ms, {dropped} dropped"
    )


def _raise_failure(server: Server, status: dict[str, Any]) -> None:
    if server.fatal_error is not None:
        raise server.fatal_error
    if server.first_failure is not None and not status["total"]["served"]:
        source, frame, error = server.first_failure
        raise WorkloadError(
            f"{server.name} failed on every frame; on frame {frame} of {source}: "
            f"{type(error).__name__}: {error}",
            error_type=type(error).__name__,
            error_message=str(error),
            traceback="".join(traceback.format_exception(error)),
        )
    broken = [s for s in status["sources"] if s["state"] == "failed"]
    if broken:
        raise UsageError("; ".join(f"{s['name']} ({s['url']}): {s['error']}" for s in broken))


@contextmanager
def _results_only() -> Iterator[TextIO | FileIO]:
    """Reserve stdout for results: what the model and its libraries print goes to stderr."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # in a notebook
        yield sys.stdout
        return
    sys.stdout.flush()
    results = FileIO(os.dup(descriptor), "w")
    os.dup2(sys.stderr.fileno(), descriptor)
    try:
        yield results
    finally:
        sys.stdout.flush()
        os.dup2(results.fileno(), descriptor)
        results.close()
