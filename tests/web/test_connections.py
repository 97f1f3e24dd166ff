"""Strangers who open connections, send little, send headers without an end, or guess the token."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn")

from rightbatch._web.access import AccessControl, Guesses
from rightbatch._web.connections import (
    Limits,
    RareErrors,
    RareWarnings,
    _limited_h11,
    limited_protocol,
)
from rightbatch._web.listening import HttpServer

HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "


PATIENCE = 60.0  # seconds after which a test gives up waiting; a loaded machine may need many
BEGUN = threading.Semaphore(0)
"""Released by every request that has begun at /slow and /long."""
GO = threading.Event()
"""What the requests at /slow wait for."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body; waits for `GO` at /slow; a long answer at /long."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] in ("/slow", "/long"):
        BEGUN.release()
    while scope["path"] == "/slow" and not GO.is_set():
        await asyncio.sleep(0.01)
    content = b"x" * 20_000_000 if scope["path"] == "/long" else b"%d" % len(body)
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture(params=["httptools", "h11"])
def protocol(request: pytest.FixtureRequest) -> str:
    if request.param == "httptools":
        pytest.importorskip("httptools")
    return str(request.param)


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch, protocol: str, limits: Limits, served: Any = app
) -> Iterator[str]:
    made = {"httptools": limited_protocol, "h11": _limited_h11}[protocol]
    monkeypatch.setattr("rightbatch._web.listening.limits_here", lambda: limits)
    monkeypatch.setattr("rightbatch._web.listening.limited_protocol", made)
    server = HttpServer().start(served, port=0)
    try:
        yield server.url
    finally:
        server.stop(1.0)


@pytest.fixture(autouse=True)
def _nothing_has_begun() -> Iterator[None]:
    GO.clear()
    while BEGUN.acquire(blocking=False):
        pass  # those of another test
    yield
    GO.set()


def begun(count: int) -> bool:
    """Waits until so many more requests have begun."""
    return all(BEGUN.acquire(timeout=PATIENCE) for _ in range(count))


def connected(url: str, sent: bytes = b"") -> socket.socket:
    parts = urlsplit(url)
    client = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
    client.sendall(sent)
    return client


@contextmanager
def half_sent(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that wait with half a request."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(connected(url, HALF))) for _ in range(count)]


def status(url: str, path: str = "/", body: bytes | None = None, token: str = "") -> int:
    parts = urlsplit(url)
    with closing(
        http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    ) as client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client.request("GET" if body is None else "POST", path, body, headers)
        return client.getresponse().status


def is_closed(client: socket.socket) -> bool:
    """Waits until the server has closed the connection."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_those_that_wait_longest_make_room_for_new_ones(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    limits = Limits(most=20)
    with serving(monkeypatch, protocol, limits) as url, half_sent(url, 100) as waiting:
        for _ in range(5):
            assert status(url) == 200
        assert limits.count <= 10
        assert is_closed(waiting[0])


def test_requests_that_run_are_not_cut_off_by_new_connections(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with serving(monkeypatch, protocol, Limits(most=8)) as url, ThreadPoolExecutor(3) as pool:
        running = [pool.submit(status, url, "/slow") for _ in range(3)]
        try:
            assert begun(3)
            with half_sent(url, 50) as waiting:
                assert is_closed(waiting[0])  # to make room for those after it
                GO.set()
                assert [one.result() for one in running] == [200] * 3
        finally:
            GO.set()


def test_an_address_with_nothing_but_running_requests_is_told_so(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with serving(monkeypatch, protocol, Limits(most=8)) as url, ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(status, url, "/slow") for _ in range(20)]
        try:
            assert begun(4)  # half of the connections, which is what an address has
            until = time.monotonic() + PATIENCE
            while sum(one.done() for one in asked) < 16 and time.monotonic() < until:
                time.sleep(0.01)
        finally:
            GO.set()
        answers = []
        for one in asked:
            try:
                answers.append(one.result())
            except (ConnectionError, http.client.HTTPException):
                answers.append(503)  # the answer came before the request was sent
        assert sorted(answers) == [200] * 4 + [503] * 16
        assert status(url) == 200


@pytest.mark.parametrize("sent", [b"", HALF, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + HALF])
def test_one_that_waits_too_long_is_closed(
    monkeypatch: pytest.MonkeyPatch, protocol: str, sent: bytes
) -> None:
    limits = Limits(wait_seconds=0.4)
    with serving(monkeypatch, protocol, limits) as url, closing(connected(url, sent)) as client:
        with ThreadPoolExecutor(1) as pool:
            closed = pool.submit(is_closed, client)
            for _ in range(40):  # a byte of a header now and then changes nothing
                if closed.done():
                    break
                time.sleep(0.1)
                try:
                    client.send(b"x" if sent else b"")
                except OSError:
                    break
            assert closed.result()
        assert limits.count == 0


def test_a_client_that_does_not_read_is_closed(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    limits = Limits(wait_seconds=0.4, unread_seconds=0.5)
    request = b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(monkeypatch, protocol, limits) as url, closing(connected(url, request)):
        assert begun(1)
        until = time.monotonic() + PATIENCE
        while limits.count and time.monotonic() < until:
            time.sleep(0.05)
        assert limits.count == 0


def test_headers_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    with serving(monkeypatch, protocol, Limits()) as url, closing(connected(url, HALF)) as client:
        sent = 0
        try:
            for _ in range(1000):
                sent += client.send(b"y" * 10_000 + b"\r\nX: ")
        except ConnectionError:
            pass
        assert sent < 8_000_000, "what the sockets' buffers hold, not ten megabytes"
        assert status(url) == 200


@pytest.mark.parametrize("piece", [b"A: b\r\n" * 2000, b"a" * 10_000], ids=["many", "one"])
def test_trailers_without_an_end_are_refused(
    monkeypatch: pytest.MonkeyPatch, protocol: str, piece: bytes
) -> None:
    """What follows the last chunk of a body are headers, too, which uvicorn collects."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    with serving(monkeypatch, protocol, Limits()) as url, closing(connected(url, head)) as client:
        sent = 0
        try:
            for _ in range(1000):
                sent += client.send(piece)
        except ConnectionError:
            pass
        assert sent < 8_000_000, "what the sockets' buffers hold, not ten megabytes"
        assert status(url) == 200


def test_trailers_do_not_change_the_headers(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """They come when access was granted; a proxy checks them for less than headers."""
    seen: list[Any] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        seen.extend(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    body = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;extension=1\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n"
    )
    with (
        serving(monkeypatch, protocol, Limits(), noting) as url,
        closing(connected(url, body)) as client,
    ):
        assert b" 204 " in client.recv(1000)
    assert seen == [b"host", b"transfer-encoding"]


def test_requests_sent_ahead_are_answered_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Each that waits holds some kilobytes, and 64 KiB of them are 3000 requests."""
    one = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    slow = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(monkeypatch, protocol, Limits()) as url:
        with closing(connected(url, one * 10)) as client:
            answers = b""
            while answers.count(b" 200 ") < 10:
                part = client.recv(65536)
                assert part
                answers += part
        with closing(connected(url, slow + one * 1000)) as client:
            if protocol == "httptools":  # h11 parses a request when the one before is answered
                assert is_closed(client)
            else:
                assert begun(1)
                GO.set()
        assert status(url) == 200


def test_what_is_no_http_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("rightbatch.http")
    monkeypatch.setattr(logger, "filters", [RareWarnings()])
    with serving(monkeypatch, protocol, Limits()) as url:
        for _ in range(20):
            with closing(connected(url, b"\x16\x03\x01 what TLS begins with\r\n\r\n")) as client:
                assert is_closed(client)
    assert [record.getMessage() for record in caplog.records if "Invalid" in record.msg] == [
        "Invalid HTTP request received."
    ]


def test_long_bodies_and_many_requests_on_one_connection_are_no_headers(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with serving(monkeypatch, protocol, Limits()) as url:
        parts = urlsplit(url)
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port)) as client:
            for size in (0, 10, 100_000, 1_000_000):
                for _ in range(3):
                    client.request("POST", "/", b"z" * size)
                    assert client.getresponse().read() == b"%d" % size
            client.request("GET", "/", headers={"Cookie": "c" * 20_000})
            assert client.getresponse().read() == b"0"


def test_an_attack_costs_little_memory(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """In a process of its own: headers without an end on many connections."""
    script = f"""
        import socket, sys, threading, time
        sys.path.insert(0, {__file__.rpartition("/")[0]!r})
        import test_connections as here
        import pytest
        from rightbatch._device.proc import peak_resident
        from rightbatch._web.connections import limits_here
        limits = limits_here()
        with pytest.MonkeyPatch.context() as patch:
            with here.serving(patch, {protocol!r}, limits) as url:
                assert here.status(url) == 200
                before = peak_resident()
                clients = []
                for _ in range(400):
                    clients.append(here.connected(url, here.HALF))
                for _ in range(30):
                    for client in clients:
                        try:
                            client.send(b"y: " + b"y" * 8000 + b"\\r\\n")
                        except OSError:
                            pass
                assert here.status(url) == 200
                print((peak_resident() - before) / 2**20)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50, "megabytes"


def test_the_files_of_the_process_are_not_used_up() -> None:
    from rightbatch._web.connections import limits_here

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert limits_here().most <= 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_error_of_the_loop_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    handler = RareErrors()
    for _ in range(1000):
        handler(None, {"message": "no files"})  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records if record.name == "rightbatch"] == [
        "no files: no exception"
    ]


def test_an_error_of_the_loop_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise OSError("no file left")
    except OSError as error:
        RareErrors()(None, {"message": "accept", "exception": error})  # type: ignore[arg-type]
    assert "accept: no file left" in caplog.text
    assert "Traceback" in caplog.text


class TestGuesses:
    def test_are_slowed_down_and_those_who_are_in_stay_in(
        self, monkeypatch: pytest.MonkeyPatch, protocol: str
    ) -> None:
        monkeypatch.setattr(Guesses, "FREE", 3)
        served = AccessControl(app, token="right", hosts=["*"])
        with serving(monkeypatch, protocol, Limits(), served) as url:
            parts = urlsplit(url)
            with closing(http.client.HTTPConnection(parts.hostname or "", parts.port)) as known:
                headers = {"Authorization": "Bearer right"}
                known.request("GET", "/data", headers=headers)
                assert known.getresponse().read() == b"0"
                with ThreadPoolExecutor(8) as pool:
                    began = time.monotonic()
                    guesses = [
                        pool.submit(status, url, "/data", None, f"wrong{n}") for n in range(40)
                    ]
                    while sum(guess.done() for guess in guesses) < 10:
                        time.sleep(0.01)
                    known.request("GET", "/data", headers=headers)
                    assert known.getresponse().read() == b"0"
                    answers = [guess.result() for guess in guesses]
                compared = answers.count(401)
                assert set(answers) <= {401, 429}
                assert compared <= 3 + Guesses.AT_ONCE * (1 + time.monotonic() - began)
            time.sleep(Guesses.PAUSE + 0.2)
            assert status(url, "/data", None, "right") == 200

    def test_without_a_token_cost_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        served = AccessControl(app, token="right", hosts=["*"])
        with serving(monkeypatch, "h11", Limits(), served) as url:
            assert {status(url, "/data") for _ in range(30)} == {401}
            assert status(url, "/data", None, "right") == 200


def test_the_messages_are_valid_responses() -> None:
    from rightbatch._web import connections

    for message in (connections._BUSY, connections._TOO_LARGE):
        head, _, body = message.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert json.loads(body)["error"]
