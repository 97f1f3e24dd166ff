"""Who may ask: names of hosts, pages of other sites, and tokens."""

from __future__ import annotations

import pytest
from sites import JSON, Answer, StandIn, ask, encoded, picture, raw, site

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")


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
