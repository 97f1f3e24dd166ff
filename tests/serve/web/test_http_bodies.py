"""Bodies that are refused: no images, too long, too slow, too many at once."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from costly_files import COSTLY
from films import PATIENCE
from numpy.typing import NDArray
from sites import Answer, StandIn, ask, encoded, form, picture, raw, site

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from rightbatch._serve.web.http import Limits
from rightbatch._serve.web.images import bytes_to_decode, decode


def noise() -> bytes:
    return encoded(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no image", {}, 415),
        (b"", {}, 415),
        (noise()[:9000], {}, 422),
        (encoded(np.zeros((1001, 1000, 3), np.uint8)), {}, 413),
        (bytes(100_001), {}, 413),
        (bytes(5_000_000), {}, 413),
        (encoded(picture()), {"Content_Encoding": "gzip"}, 415),
        (form(noise()[:9000])[0], {"Content_Type": form(b"")[1]}, 422),
        (form(bytes(100_001))[0], {"Content_Type": form(b"")[1]}, 413),
        (form(bytes(200_000))[0], {"Content_Type": form(b"")[1]}, 413),
        (form(noise(), "image")[0], {"Content_Type": form(b"")[1]}, 422),
        (form(b"text", filename=None)[0], {"Content_Type": form(b"")[1]}, 422),
        (b"--line\r\nno form", {"Content_Type": form(b"")[1]}, 422),
        (form(noise())[0], {"Content_Type": "multipart/form-data"}, 422),
        (form(noise())[0], {"Content_Type": "multipart/form-data; boundary=other"}, 422),
    ],
)
def test_what_is_no_image_is_refused(
    url: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = ask(url, "/predict", body, **headers)
    assert answer.status == status
    assert answer.content["error"]


def test_a_body_without_a_length_is_refused_once_it_is_too_long(url: str) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(20):
            sent += 10_000
            yield bytes(10_000)

    answer = ask(url, "/predict", parts())
    assert answer.status == 413
    assert ask(url, "/predict", iter([encoded(picture())])).status == 200


def until(status: int, question: Callable[[], Answer]) -> Answer:
    """The first answer with that status: the server may not have read all of a body yet."""
    give_up = time.monotonic() + PATIENCE
    while (answer := question()).status != status:
        assert time.monotonic() < give_up, answer
    return answer


def test_who_waits_to_be_told_to_go_on_is_not_told_to_send_what_is_too_long(url: str) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    answer = raw(url, head + b"Content-Length: 100001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


def test_a_body_that_does_not_come_is_not_waited_for_without_end(server: StandIn) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with site(server, limits=Limits(upload_seconds=1.0)) as url:
        began = time.monotonic()
        assert raw(url, head + b"abc").startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began > 0.9


def send_most(url: str, length: int) -> socket.socket:
    """Send a body without its last bytes; the server may refuse it before it has come."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    with contextlib.suppress(ConnectionError):
        connection.sendall(head.encode() + bytes(length - 1))
    return connection


def test_a_sender_that_goes_leaves_the_others_alone(server: StandIn) -> None:
    # The time limit of uploads is not what frees their bytes.
    with site(server, limits=Limits(held_bytes=1_000_000, upload_seconds=1000.0)) as url:
        for _ in range(5):
            send_most(url, 400_000).close()
        until(200, lambda: ask(url, "/predict", encoded(picture())))


def test_all_requests_together_hold_no_more_than_is_allowed(server: StandIn) -> None:
    limits = Limits(held_bytes=500_000, upload_seconds=1000.0)
    with site(server, limits=limits) as url, contextlib.ExitStack() as connections:

        def while_others_send() -> Answer:
            # A picture that is served while this body arrives has the body refused instead.
            connections.enter_context(send_most(url, 499_000))
            return ask(url, "/predict", encoded(picture(300)))

        answer = until(503, while_others_send)
        assert answer.headers["Retry-After"] == "1"
        connections.close()
        until(200, lambda: ask(url, "/predict", encoded(picture(300))))


def test_small_pictures_are_not_counted_as_large_ones() -> None:
    for height in (1, 20, 300):
        image = picture(height)
        assert bytes_to_decode(encoded(image)) < 20 * image.nbytes


def test_a_large_body_is_not_kept(url: str) -> None:
    ask(url, "/predict", bytes(200_000))  # what is imported or made once is not of the body
    tracemalloc.start()
    try:
        ask(url, "/predict", (bytes(10_000) for _ in range(40)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_a_form_made_to_be_slow_does_not_hold_up_others(server: StandIn) -> None:
    body = b"--line\r\n" + b"\r" * 4_000_000
    with site(server) as url, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, url, "/predict", body, Content_Type=form(b"")[1])
        waits = []
        while not slow.done():
            began = time.monotonic()
            assert ask(url, "/health").status == 200
            waits.append(time.monotonic() - began)
        assert slow.result().status == 422
        assert not waits or max(waits) < 30


@pytest.mark.parametrize("name", COSTLY)
def test_a_picture_made_to_be_costly_is_refused_before_it_is_decoded(
    server: StandIn, name: str
) -> None:
    make, message = COSTLY[name]
    with site(server) as url:
        answer = ask(url, "/predict", make())
    assert answer.status == 422
    assert message in answer.content["error"]


def test_large_pictures_leave_decoders_to_small_ones(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are decoders, which take as long as a test lets them."""
    go, begun = threading.Event(), threading.Semaphore(0)

    def slow(body: bytes, limits: Limits) -> NDArray[np.uint8]:
        if len(body) > 10_000:
            begun.release()
            assert go.wait(PATIENCE)
        return decode(body, limits)

    monkeypatch.setattr("rightbatch._serve.web.predict.decode", slow)
    large = encoded(np.zeros((3200, 3200, 3), np.uint8))
    with site(server) as url, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, "/predict", large) for _ in range(6)]
        assert begun.acquire(timeout=PATIENCE)
        assert ask(url, "/predict", encoded(picture())).status == 200
        go.set()
        assert {one.result().status for one in asked} == {200}
