"""The routes over real sockets, asked by friends, by the careless and by the hostile."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from sites import Answer, StandIn, ask, encoded, heights, picture, site, source, stand_in, threads

from rightbatch._errors import UsageError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from rightbatch._serve.web.http import HttpServer, Limits, make_app
from rightbatch._web.listening import _listen

JSON = {"Content_Type": "application/json"}
LIMITS = Limits(body_bytes=100_000, pixels=1_000_000, upload_seconds=1.0)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(sources=[source("line1"), source("line2")]) as server:
        server.pictures["line1"] = encoded(picture(), "JPEG")
        yield server


@pytest.fixture
def url(server: StandIn) -> Iterator[str]:
    with site(server, limits=LIMITS) as url:
        yield url


def form(file: bytes, field: str = "file", filename: str | None = "a.png") -> tuple[bytes, str]:
    named = f'; filename="{filename}"' if filename else ""
    head = f'--line\r\nContent-Disposition: form-data; name="{field}"{named}\r\n\r\n'
    return head.encode() + file + b"\r\n--line--\r\n", "multipart/form-data; boundary=line"


# -- images


def test_an_image_gets_its_result_and_how_it_came_to_be(url: str) -> None:
    answer = ask(url, "/predict", encoded(picture(17)))
    assert answer.status == 200
    assert answer.content["result"] == {"height": 17, "mean": [100.0, 100.0, 100.0]}
    assert answer.content["batch_size"] == 1
    assert answer.content["latency_ms"] > 0
    assert answer.content["reason"] == "all waiting items"
    assert answer.headers["Content-Type"] == "application/json"


def test_an_image_may_be_the_file_of_a_form(url: str) -> None:
    body, kind = form(encoded(picture(23)))
    answer = ask(url, "/predict", body, Content_Type=kind)
    assert answer.status == 200
    assert answer.content["result"]["height"] == 23


def test_what_curl_calls_a_form_without_being_asked_is_an_image(url: str) -> None:
    kind = "application/x-www-form-urlencoded"
    assert ask(url, "/predict", encoded(picture()), Content_Type=kind).status == 200


def test_what_comes_together_runs_together_and_each_gets_its_own() -> None:
    def slow(images: list[Any]) -> list[int]:
        time.sleep(0.03)  # whatever the batch
        return [len(image) for image in images]

    with stand_in(slow, latency=2.0) as server, site(server) as url:
        ask(url, "/predict", encoded(picture()))
        with ThreadPoolExecutor(24) as pool:
            answers = list(
                pool.map(
                    lambda height: ask(url, "/predict", encoded(picture(height))), range(5, 53)
                )
            )
    assert [answer.content["result"] for answer in answers] == list(range(5, 53))
    assert max(answer.content["batch_size"] for answer in answers) > 3


def test_what_would_be_late_is_refused_and_told_when_to_come_again() -> None:
    def slow(images: list[Any]) -> list[None]:
        time.sleep(0.05 * len(images))
        return [None] * len(images)

    with stand_in(slow, latency=0.15) as server, site(server) as url:
        assert ask(url, "/predict", encoded(picture())).status == 200
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: ask(url, "/predict", encoded(picture())), range(20)))
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} <= {200, 503}
    assert len(refused) >= 10
    for answer in refused:
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.content["cause"] in ("refused", "late")


def test_what_is_no_number_in_a_result_is_null() -> None:
    def nothing(images: list[Any]) -> list[Any]:
        return [{"score": np.array([0.5, np.nan, np.inf])} for _ in images]

    with stand_in(nothing) as server, site(server) as url:
        answer = ask(url, "/predict", encoded(picture()))
    assert answer.content["result"] == {"score": [0.5, None, None]}


@pytest.mark.parametrize("bad", ["raises", "unwritable"])
def test_a_model_that_fails_for_one_image_serves_the_next(bad: str) -> None:
    def sometimes(images: list[Any]) -> list[Any]:
        if len(images[0]) == 13:
            if bad == "raises":
                raise ValueError("13 rows")
            return [object() for _ in images]
        return [1 for _ in images]

    with stand_in(sometimes) as server, site(server) as url:
        assert ask(url, "/predict", encoded(picture(20))).status == 200
        failed = ask(url, "/predict", encoded(picture(13)))
        assert failed.status == 500
        assert ("13 rows" if bad == "raises" else "object") in failed.content["error"]
        assert ask(url, "/predict", encoded(picture(20))).status == 200


def test_a_closed_batcher_refuses_and_says_so(server: StandIn, url: str) -> None:
    server.batcher.close()
    answer = ask(url, "/predict", encoded(picture()))
    assert answer.status == 503
    assert answer.content["cause"] == "closing"
    assert answer.headers["Retry-After"] == "1"


def test_without_prediction_there_is_no_route_for_it(server: StandIn) -> None:
    with site(server, predict=False) as url:
        assert ask(url, "/predict", encoded(picture())).status == 404
        assert ask(url, "/health").content["predict"] is False


# -- bodies that are refused


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


def raw(url: str, text: bytes, *, then: bytes = b"", wait: float = 0.0) -> bytes:
    """What comes back for bytes on a socket, up to its end."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(text)
        if then:
            time.sleep(wait)
            connection.sendall(then)
        answer = b""
        while b"}" not in answer and (part := connection.recv(65536)):
            answer += part
        return answer


def until(status: int, question: Callable[[], Answer]) -> Answer:
    """The first answer with that status: the server may not have read all of a body yet."""
    give_up = time.monotonic() + 20
    while (answer := question()).status != status:
        assert time.monotonic() < give_up, answer
    return answer


def test_who_waits_to_be_told_to_go_on_is_not_told_to_send_what_is_too_long(url: str) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    answer = raw(url, head + b"Content-Length: 100001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


def test_a_body_that_does_not_come_is_not_waited_for_without_end(url: str) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    began = time.monotonic()
    assert raw(url, head + b"abc").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began > 0.9


def test_a_sender_that_goes_leaves_the_others_alone(server: StandIn) -> None:
    with site(server, limits=Limits(held_bytes=200_000)) as url:
        parts = urlsplit(url)
        for _ in range(5):
            with socket.create_connection((parts.hostname, parts.port)) as connection:
                head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n"
                connection.sendall(head + bytes(80_000))
        time.sleep(0.1)
        assert ask(url, "/predict", encoded(picture())).status == 200


def test_all_requests_together_hold_no_more_than_is_allowed(server: StandIn) -> None:
    with site(server, limits=Limits(held_bytes=100_000)) as url:
        parts = urlsplit(url)
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000\r\n\r\n"
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head + bytes(98_999))
            answer = until(503, lambda: ask(url, "/predict", encoded(picture(300))))
            assert answer.headers["Retry-After"] == "1"
        until(200, lambda: ask(url, "/predict", encoded(picture(300))))


def test_a_large_body_is_not_kept(url: str) -> None:
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
        assert not waits or max(waits) < 10


# -- figures and the page


def test_the_status_is_the_servers(server: StandIn, url: str) -> None:
    answer = ask(url, "/status")
    assert answer.status == 200
    assert answer.content == json.loads(json.dumps(server.status()))
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("state", "status"), [("starting", 200), ("serving", 200), ("stopping", 503), ("stopped", 503)]
)
def test_health_says_whether_requests_should_come(
    server: StandIn, url: str, state: str, status: int
) -> None:
    server.state = state
    answer = ask(url, "/health")
    assert answer.status == status
    assert answer.content == {"model": "yolo26n", "state": state, "predict": True}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/page.css", "text/css; charset=utf-8"),
        ("/static/page.js", "text/javascript; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
    ],
)
def test_the_page_and_its_files_come_with_their_kinds(url: str, path: str, kind: str) -> None:
    answer = ask(url, path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == kind
    assert answer.body


@pytest.mark.parametrize(
    "path", ["/static/../http.py", "/static/%2e%2e/http.py", "/static/", "/static/nothing.js"]
)
def test_no_other_file_is_given(url: str, path: str) -> None:
    assert ask(url, path).status == 404


def test_a_snapshot_is_a_jpeg_and_what_has_none_is_not_found(url: str) -> None:
    answer = ask(url, "/snapshot/line1")
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.body[:2] == b"\xff\xd8"
    assert "no frame" in ask(url, "/snapshot/line2").content["error"]
    assert "no source" in ask(url, "/snapshot/line3").content["error"]
    assert {ask(url, f"/snapshot/line{n}").status for n in (2, 3)} == {404}


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/elsewhere", "GET", 404), ("/docs", "GET", 404), ("/predict", "GET", 405)],
)
def test_what_is_not_there_is_refused_as_json(
    url: str, path: str, method: str, status: int
) -> None:
    answer = ask(url, path, method=method)
    assert answer.status == status
    assert list(answer.content) == ["error"]


def test_the_routes_are_described(url: str) -> None:
    paths = ask(url, "/openapi.json").content["paths"]
    assert set(paths) == {
        "/predict", "/status", "/health", "/metrics",
        "/snapshot/{name}", "/sources", "/sources/{name}",
    }  # fmt: skip


# -- sources that come and go


def test_a_source_is_added_and_removed(server: StandIn, url: str) -> None:
    order = {"source": "rtsp://belt/3", "name": "belt", "contract": "every", "weight": 0.5}
    answer = ask(url, "/sources", json.dumps(order), **JSON)
    assert answer.status == 201
    assert answer.content == {"name": "belt"}
    assert server.calls == [("add", "rtsp://belt/3", "belt", "every", 0.5)]
    answer = ask(url, "/sources/belt", method="DELETE")
    assert (answer.status, answer.body) == (204, b"")
    assert ask(url, "/sources/belt", method="DELETE").status == 404


@pytest.mark.parametrize("name", ["hall/2", "a b", "ä?#%", "..", "<script>"])
def test_a_source_of_any_name_can_be_seen_and_removed(server: StandIn, url: str, name: str) -> None:
    assert ask(url, "/sources", json.dumps({"source": 0, "name": name}), **JSON).status == 201
    server.pictures[name] = b"\xff\xd8"
    written = quote(name, safe="")
    assert ask(url, f"/snapshot/{written}").status == 200
    assert ask(url, f"/sources/{written}", method="DELETE").status == 204


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("no json", 422),
        ("[]", 422),
        ("{}", 422),
        ('{"source": ""}', 422),
        ('{"source": null}', 422),
        ('{"source": true}', 422),
        ('{"source": ["a"]}', 422),
        ('{"source": "a", "weight": "1"}', 422),
        ('{"source": "a", "colour": "red"}', 422),
        ('{"source": "a", "contract": "some"}', 422),
        ('{"source": "a", "name": "line1"}', 422),
        ("[" * 9_000, 422),
        (" " * 10_001, 413),
    ],
)
def test_an_order_that_cannot_be_meant_is_refused(url: str, body: str, status: int) -> None:
    answer = ask(url, "/sources", body, **JSON)
    assert answer.status == status
    assert answer.content["error"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_foreign_pages_form_can_send_is_no_order(
    server: StandIn, url: str, kind: str
) -> None:
    body = json.dumps({"source": "rtsp://evil/1"})
    assert ask(url, "/sources", body, Content_Type=kind).status == 415
    assert server.calls == []


# -- who may ask


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "LOCALHOST:1", "[::1]:80", "[::1]"]
)
def test_this_machine_is_asked_for_by_its_names(url: str, host: str) -> None:
    assert ask(url, "/status", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8000", "", "[", "a@b:c:d"]
)
def test_a_name_that_was_made_to_point_here_is_not_answered(
    server: StandIn, url: str, host: str
) -> None:
    for path, body in (("/", None), ("/status", None), ("/predict", encoded(picture()))):
        answer = ask(url, path, body, Host=host)
        assert answer.status == 400
        assert "error" in answer.content
    assert server.batcher.counters.total()["served"] == 0


def test_two_names_are_none(url: str) -> None:
    text = b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert raw(url, text).startswith(b"HTTP/1.1 400")


def test_other_names_can_be_allowed(server: StandIn) -> None:
    with site(server, hosts=["cameras.example"]) as url:
        assert ask(url, "/status", Host="cameras.example").status == 200
        assert ask(url, "/status").status == 400
    with site(server, hosts="cameras.example") as url:
        assert ask(url, "/status", Host="cameras.example:80").status == 200
    with site(server, hosts="*") as url:
        assert ask(url, "/status", Host="any.example").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_pages_of_other_sites_give_no_orders(server: StandIn, url: str, origin: str) -> None:
    assert ask(url, "/predict", encoded(picture()), Origin=origin).status == 403
    assert ask(url, "/sources", '{"source": 0}', Origin=origin, **JSON).status == 403
    assert ask(url, "/sources/line1", method="DELETE", Origin=origin).status == 403
    assert server.calls == []
    answer = ask(url, "/status", Origin=origin)
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_own_page_gives_orders(url: str) -> None:
    assert ask(url, "/predict", encoded(picture()), Origin=url).status == 200


def test_where_there_is_a_token_only_the_empty_page_and_health_are_open(server: StandIn) -> None:
    with site(server, token="söcret") as url:

        def statuses(**headers: str) -> dict[str, int]:
            asked: dict[str, Answer] = {
                path: ask(url, path, **headers)
                for path in ("/", "/static/page.js", "/health", "/status", "/metrics",
                             "/snapshot/line1", "/openapi.json", "/elsewhere")
            }  # fmt: skip
            asked["/predict"] = ask(url, "/predict", encoded(picture()), **headers)
            asked["/sources"] = ask(url, "/sources", '{"source": 0}', **JSON, **headers)
            return {path: answer.status for path, answer in asked.items()}

        open_to_all = {"/", "/static/page.js", "/health"}
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic c8O2"}):
            for path, status in statuses(**wrong).items():
                assert status == (200 if path in open_to_all else 401), path
        assert ask(url, "/status?token=s%C3%B6cret").status == 401
        assert ask(url, "/status").headers["WWW-Authenticate"] == "Bearer"
        right = statuses(Authorization="Bearer söcret".encode().decode("latin-1"))
        assert {path for path, status in right.items() if status >= 400} == {"/elsewhere"}


def test_with_a_token_any_name_will_do(server: StandIn) -> None:
    with site(server, token="secret") as url:
        answer = ask(url, "/status", Host="server.local:80", Authorization="Bearer secret")
    assert answer.status == 200


def test_a_token_is_compared_in_constant_time(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import secrets

    compared = []
    real = secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    with site(server, token="secret") as url:
        ask(url, "/status", Authorization="Bearer s")
    assert compared == [b"s"]


def test_every_answer_says_that_nothing_comes_from_elsewhere(url: str) -> None:
    for path in ("/", "/status", "/elsewhere", "/static/page.js"):
        headers = ask(url, path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in headers


# -- listening


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
    listening = HttpServer().start(make_app(server), "127.0.0.1", 0)
    port = urlsplit(listening.url).port or 0
    assert ask(listening.url, "/health").status == 200
    listening.stop()
    listening.stop()
    assert "rightbatch-http" not in threads()
    with pytest.raises(OSError, match="refused"):
        ask(listening.url, "/health")
    with site(server, port=port) as url:
        assert ask(url, "/health").status == 200


def test_what_is_being_answered_when_it_stops_is_answered() -> None:
    is_running = threading.Event()

    def slow(images: list[Any]) -> list[int]:
        is_running.set()
        time.sleep(0.1)
        return [1] * len(images)

    with stand_in(slow, latency=1.0) as server:
        listening = HttpServer().start(make_app(server), "127.0.0.1", 0)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, listening.url, "/predict", encoded(picture()))
            assert is_running.wait(10)
            listening.stop(60.0)  # the calibration takes several seconds
            assert asked.result().status == 200


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
    with Server(heights, "500ms", to=lambda line: None, progress=False) as server:
        url = server.listen(0, token="secret")
        bearer = {"Authorization": "Bearer secret"}
        order = json.dumps({"source": str(tmp_path), "name": "belt"})
        assert ask(url, "/sources", order, **JSON).status == 401
        assert ask(url, "/sources", order, **JSON, **bearer).content == {"name": "belt"}
        again = ask(url, "/sources", order, **JSON, **bearer)
        assert (again.status, list(again.content)) == (422, ["error"])
        assert server.wait(20)
        assert (
            ask(url, "/predict", encoded(picture(17)), **bearer).content["result"]["height"] == 17
        )
        status = ask(url, "/status", **bearer).content
        assert [one["served"] for one in status["sources"]] == [3]
        assert status["requests"]["served"] == 1
        assert ask(url, "/snapshot/belt", **bearer).body[:2] == b"\xff\xd8"
        figures = ask(url, "/metrics", **bearer).body.decode()
        assert 'rightbatch_served_total{source="belt"} 3.0' in figures
        assert 'rightbatch_served_total{source="http"} 1.0' in figures
        assert ask(url, "/sources/belt", method="DELETE", **bearer).status == 204
        assert ask(url, "/status", **bearer).content["sources"] == []
