"""The routes over real sockets: images, figures and the page, and sources that come and go."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from films import PATIENCE, wait_for
from sites import JSON, StandIn, ask, encoded, form, picture, site, stand_in

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

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
    go = threading.Event()
    go.set()

    def slow(images: list[Any]) -> list[int]:
        assert go.wait(PATIENCE)
        time.sleep(0.05)  # whatever the batch
        return [len(image) for image in images]

    with stand_in(slow) as server, site(server) as url:
        ask(url, "/predict", encoded(picture()))
        go.clear()  # the first one is held, until the others have come
        with ThreadPoolExecutor(24) as pool:
            asked = [
                pool.submit(ask, url, "/predict", encoded(picture(height)))
                for height in range(5, 53)
            ]
            try:
                wait_for(lambda: server.batcher.waiting >= 8, "for requests to queue")
            finally:
                go.set()
            answers = [one.result() for one in asked]
    assert [answer.content["result"] for answer in answers] == list(range(5, 53))
    assert max(answer.content["batch_size"] for answer in answers) > 3


def test_what_would_be_late_is_refused_and_told_when_to_come_again() -> None:
    go = threading.Event()
    go.set()

    def slow(images: list[Any]) -> list[None]:
        time.sleep(0.2 * len(images))
        assert go.wait(PATIENCE)
        return [None] * len(images)

    with stand_in(slow, latency=0.6) as server, site(server) as url:
        assert ask(url, "/predict", encoded(picture())).status == 200
        go.clear()  # what runs now is held: of the target's three images no more than three wait
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(ask, url, "/predict", encoded(picture())) for _ in range(20)]
            try:
                wait_for(lambda: sum(one.done() for one in asked) >= 16, "for the refusals")
            finally:
                go.set()
            answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} <= {200, 503}
    assert len(refused) >= 16
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
