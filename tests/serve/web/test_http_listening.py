"""Where the server listens, how it stops, and the real server behind the routes."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from films import PATIENCE, reserved_port, wait_for
from sites import (
    JSON,
    Answer,
    StandIn,
    ask,
    encoded,
    heights,
    http_threads,
    picture,
    site,
    stand_in,
)

from rightbatch._errors import UsageError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from rightbatch._serve.web.http import HttpServer, make_app
from rightbatch._web.listening import _listen


def test_a_port_that_is_taken_is_named_with_the_remedy(server: StandIn) -> None:
    with site(server) as url:
        port = urlsplit(url).port
        with pytest.raises(UsageError, match=rf"port {port}: the port is in use.*--http PORT"):
            HttpServer().start(make_app(server), "127.0.0.1", port or 0)


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("192.0.2.1", 0, "no such address"),
        ("no-such-name.invalid", 0, "cannot resolve the bind address"),
        ("127.0.0.1", 70_000, "from 0 to 65535"),
    ],
)
def test_where_nothing_can_listen_is_said(host: str, port: int, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        _listen(host, port)


def test_it_stops_and_the_port_is_free_again(server: StandIn) -> None:
    before = http_threads()
    with reserved_port() as port:
        listening = HttpServer().start(make_app(server), "127.0.0.1", port)
        assert http_threads() - before
        assert ask(listening.url, "/health").status == 200
        listening.stop(PATIENCE)
        listening.stop(PATIENCE)
        assert not http_threads() - before
        with pytest.raises(OSError, match="refused"):
            ask(listening.url, "/health")
        with site(server, port=port) as url:
            assert ask(url, "/health").status == 200


@contextlib.contextmanager
def stopped_while_running(
    model: Callable[[list[Any]], list[int]], seconds: float
) -> Iterator[Answer]:
    """The answer to a picture that the model has begun with when the server is told to stop."""
    is_running = threading.Event()

    def running(images: list[Any]) -> list[int]:
        is_running.set()
        return model(images)

    with stand_in(running) as server:
        listening = HttpServer().start(make_app(server), "127.0.0.1", 0)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, listening.url, "/predict", encoded(picture()))
            assert is_running.wait(PATIENCE)
            listening.stop(seconds)
            yield asked.result()


def test_what_is_being_answered_when_it_stops_is_answered() -> None:
    def slow(images: list[Any]) -> list[int]:
        time.sleep(0.1)
        return [1] * len(images)

    with stopped_while_running(slow, PATIENCE) as answer:  # calibration takes several seconds
        assert answer.status == 200


@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_what_is_not_answered_when_the_time_to_stop_is_over_gets_503(
    caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """A model that hangs: no connection that is cut off, and no traceback."""
    go = threading.Event()

    def hangs(images: list[Any]) -> list[int]:
        go.wait(PATIENCE)
        return [1] * len(images)

    with stopped_while_running(hangs, seconds) as answer:
        assert answer.status == 503
        assert "stopped" in answer.content["error"]
        go.set()
    assert "Exception" not in caplog.text


def test_every_address_is_reached_from_here_by_a_name_that_is_accepted(server: StandIn) -> None:
    listening = HttpServer().start(make_app(server, token="secret"), "0.0.0.0", 0)
    try:
        assert listening.url.startswith("http://127.0.0.1:")
        assert ask(listening.url, "/health").status == 200
    finally:
        listening.stop()


def test_the_real_server_is_asked(tmp_path: Path) -> None:
    from rightbatch._serve.server import Server

    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(40)))
    options = {"progress": False, "allow_source": [str(tmp_path)]}
    with Server(heights, "60s", to=lambda line: None, **options) as server:
        url = server.listen(0, token="secret")
        bearer = {"Authorization": "Bearer secret"}
        order = json.dumps({"source": str(tmp_path), "name": "belt"})
        assert ask(url, "/sources", order, **JSON).status == 401
        assert ask(url, "/sources", order, **JSON, **bearer).content == {"name": "belt"}
        again = ask(url, "/sources", order, **JSON, **bearer)
        assert (again.status, list(again.content)) == (422, ["error"])
        assert server.wait(PATIENCE)
        assert (
            ask(url, "/predict", encoded(picture(17)), **bearer).content["result"]["height"] == 17
        )

        def served() -> list[int]:  # which is counted after who asked has the result
            status = ask(url, "/status", **bearer).content
            groups = [*status["sources"], status["requests"]]
            return [one["served"] for one in groups if one is not None]

        wait_for(lambda: sum(served()) >= 4)
        assert served() == [3, 1]
        assert ask(url, "/snapshot/belt", **bearer).body[:2] == b"\xff\xd8"
        figures = ask(url, "/metrics", **bearer).body.decode()
        assert 'rightbatch_served_total{source="belt"} 3.0' in figures
        assert 'rightbatch_served_total{source="http"} 1.0' in figures
        assert ask(url, "/sources/belt", method="DELETE", **bearer).status == 204
        assert ask(url, "/status", **bearer).content["sources"] == []
