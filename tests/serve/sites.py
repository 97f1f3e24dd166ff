"""A stand-in for `Server` with a real batcher, behind real sockets, and an HTTP client."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
from films import PATIENCE
from numpy.typing import NDArray

from rightbatch._errors import UsageError
from rightbatch._serve.engine import calibration
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.calibration import Calibration

JSON = {"Content_Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


def ask(url: str, path: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
    """One request. `Host`, `Content_Type` and the like are headers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def raw(url: str, text: bytes) -> bytes:
    """What comes back for bytes on a socket, up to its end."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as connection:
        connection.sendall(text)
        answer = b""
        while b"}" not in answer and (part := connection.recv(65536)):
            answer += part
        return answer


def form(file: bytes, field: str = "file", filename: str | None = "a.png") -> tuple[bytes, str]:
    """The body of a form with one file, and its content type."""
    named = f'; filename="{filename}"' if filename else ""
    head = f'--line\r\nContent-Disposition: form-data; name="{field}"{named}\r\n\r\n'
    return head.encode() + file + b"\r\n--line--\r\n", "multipart/form-data; boundary=line"


def encoded(image: NDArray[np.uint8], format: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format)
    return file.getvalue()


def picture(height: int = 20, value: int = 100) -> NDArray[np.uint8]:
    return np.full((height, 30, 3), value, np.uint8)


def source(name: str, **changes: Any) -> dict[str, Any]:
    """A source as `Server.status()` has it."""
    return {
        "name": name,
        "url": f"rtsp://***@{name}.local/stream",
        "contract": "freshest",
        "weight": 1.0,
        "live": True,
        "state": "running",
        "error": None,
        "size": [1280, 720],
        "frames": 1200,
        "broken": 0,
        "reconnects": 0,
        "frames_per_second": 10.0,
        "last_frame_age": 0.05,
        "served": 1180,
        "in_time": 1176,
        "dropped": {"replaced": 18, "late": 2},
        "served_per_second": 9.8,
        "latency_ms": {"p50": 41.0, "p99": 83.0},
    } | changes


@dataclass
class StandIn:
    """The interface of `Server` that the routes use, with made-up sources and a real batcher."""

    batcher: Batcher
    name: str = "yolo26n"
    state: str = "serving"
    sources: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    batches: list[dict[str, Any]] | None = None
    since: float = field(default_factory=time.time)

    def add_from_page(
        self,
        source_: Any,
        *,
        name: str | None = None,
        contract: Any = None,
        weight: float | None = None,
    ) -> str:
        self.calls.append(("add", source_, name, contract, weight))
        if contract not in (None, "every", "freshest", "deadline"):
            raise UsageError(f"{contract!r} is no contract")
        name = name or f"source{len(self.sources)}"
        if any(known["name"] == name for known in self.sources):
            raise UsageError(f"there is a source {name!r} already; choose another name")
        added = source(name, url=str(source_), contract=contract or "freshest", weight=weight or 1)
        self.sources.append(added)
        return name

    def remove(self, name: str) -> None:
        self.calls.append(("remove", name))
        self._known(name)
        self.sources = [known for known in self.sources if known["name"] != name]

    def snapshot(self, name: str) -> bytes | None:
        self._known(name)
        return self.pictures.get(name)

    def status(self) -> dict[str, Any]:
        batcher = self.batcher
        mine = batcher.counters.of("http")
        requests = mine | {"served_per_second": mine["frames_per_second"]}
        measured = batcher.calibration
        total = batcher.counters.total()
        for one in self.sources:
            total["served"] += one["served"]
            total["in_time"] += one["in_time"]
            for cause, count in one["dropped"].items():
                total["dropped"][cause] = total["dropped"].get(cause, 0) + count
        return {
            "model": self.name,
            "state": self.state,
            "since": self.since,
            "latency_target_ms": 1000 * batcher.latency,
            "calibration": None if measured is None else measured.to_dict(),
            "largest_batch": batcher.largest_batch,
            "waiting": batcher.waiting,
            "oldest_ms": 1000 * batcher.oldest(),
            "total": total,
            "sources": [dict(one) for one in self.sources],
            "requests": requests if mine["served"] or mine["dropped"] else None,
            "batches": batcher.counters.batches() if self.batches is None else self.batches,
            "written": {"lines": total["served"], "left_out": 0, "error": None},
        }

    def _known(self, name: str) -> None:
        if not any(known["name"] == name for known in self.sources):
            raise UsageError(f"there is no source {name!r}")


@contextlib.contextmanager
def site(server: StandIn, port: int = 0, **options: Any) -> Iterator[str]:
    """Its URL, while it is served."""
    from rightbatch._serve.web.http import HttpServer, make_app

    listening = HttpServer().start(make_app(server, **options), "127.0.0.1", port)
    try:
        yield listening.url
    finally:
        listening.stop()


@contextlib.contextmanager
def stand_in(
    function: Callable[[list[Any]], list[Any]] | None = None,
    latency: float = 60.0,
    **options: Any,
) -> Iterator[StandIn]:
    """One whose model says how high the images are, in time however slow this machine is."""
    with (
        mock.patch.object(calibration, "estimate_capacity", _conclude),
        Batcher(function or heights, latency, max_batch=8) as batcher,
    ):
        yield StandIn(batcher, **options)


def _conclude(samples: Any, stopped_by: str, latency: float, **_: Any) -> Calibration:
    """A made-up conclusion: that of a calibration takes seconds, and these tests do not ask it."""
    return Calibration(latency, samples, stopped_by, max(samples), 100.0, 50.0, 3, 10.0, 80.0)


def heights(images: list[NDArray[np.uint8]]) -> list[Any]:
    time.sleep(0.005)
    return [{"height": len(image), "mean": image.mean((0, 1))} for image in images]


def http_threads() -> set[threading.Thread]:
    """The threads of HTTP servers that run."""
    return {thread for thread in threading.enumerate() if thread.name == "rightbatch-http"}
