"""`rightbatch ui` and `rightbatch report`: open a store, and show it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

from rightbatch._errors import UsageError
from rightbatch._progress import Live
from rightbatch._study.records import Run, Target
from rightbatch._study.store.reader import Reader
from rightbatch._study.web.documents import LiveRuns
from rightbatch._training.targets import parse_target
from rightbatch._web.access import is_this_machine
from rightbatch._web.listening import HttpServer

PAGE_PORT = 8471  # the default


def opened(
    folder: str | None, store: str | None, experiment: str | None, target: str | None
) -> LiveRuns:
    """Open a study's folder or another store, and read all of it.

    With both, the store has the runs of the folder's study.

    Raises:
        UsageError: if there is no such study.
    """
    if folder is None and store is None:
        raise UsageError("give the folder of a study (runs/parts) or another store with --store")
    if folder is None:
        assert store is not None
        reader = Reader(store, experiment=experiment)
    else:
        reader = Reader(folder, store=store, experiment=experiment)
    with Live("reading") as live:
        reader.read(lambda done, total: live.show(f"{done} of {total} runs"))
    return reader if target is None else WithTarget(reader, Target(*parse_target(target)))


class WithTarget:
    """Runs that are compared by another target than the one they were trained to."""

    def __init__(self, source: Reader, target: Target) -> None:
        self._source, self.target = source, target

    @property
    def title(self) -> str:
        return self._source.title

    def revision(self) -> str:
        return self._source.revision()

    def runs(self) -> list[Run]:
        return self._source.runs()

    def events(self, id: str) -> list[dict[str, Any]]:
        return self._source.events(id)


def show(
    source: LiveRuns,
    *,
    port: int | None,
    host: str,
    token: str | None,
    say: Callable[[str], object],
) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UsageError: if the port cannot be opened.
    """
    from rightbatch._study.web.app import app

    if token is None and not is_this_machine(host):
        token = secrets.token_urlsafe(24)
    page = app(source, token=token)
    try:
        server = HttpServer("study", "--port").start(
            page, host, PAGE_PORT if port is None else port
        )
    except UsageError:
        if port is not None:
            raise
        server = HttpServer("study", "--port").start(page, host, 0)
    _warm_up(server.url, token)
    address = server.url if token is None else f"{server.url}/?token={token}"
    say(f"{source.title}: the page is {address} (Ctrl-C ends it)")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        say("ended; the runs are unchanged")
    finally:
        server.stop(1.0)


def _warm_up(url: str, token: str | None) -> None:
    """Request what a visitor sees first, so that it is cached when the address is printed."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def get(path: str) -> Any:
        with urlopen(Request(url + path, headers=headers), timeout=60) as answer:
            return json.load(answer)

    with suppress(OSError, ValueError):  # the page itself shows the error
        for metric in get("/api/study")["metrics"][:1]:
            get(f"/api/curves?metric={quote(metric)}")
