"""The answers of a study's server, without a browser: documents, errors and policies."""

from __future__ import annotations

import re

import pytest
from study_sites import MadeUp, ask, site

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("uvicorn")

POLICY = "Content-Security-Policy"


def test_a_document_is_sent_again_only_once_it_has_changed() -> None:
    made = MadeUp(sizes=(8, 64))
    with site(made) as url:
        first = ask(url, "/api/study")
        assert first.status == 200 and len(first.content["runs"]) == 6
        tag = first.headers["ETag"]
        again = ask(url, "/api/study", If_None_Match=tag)
        assert (again.status, again.body) == (304, b"")
        curves = ask(url, "/api/curves?metric=loss")
        assert curves.content == made.curves("loss")
        assert made.asked.count("study") == 1
        made.touch()
        assert ask(url, "/api/study", If_None_Match=tag).status == 200
        assert ask(url, "/api/runs/run-8-1").content["seed"] == 1


def test_what_is_not_there_is_answered_with_why() -> None:
    made = MadeUp(sizes=(8,), seeds=1)
    with site(made) as url:
        for path, text in {
            "/api/curves?metric=los": "no run has logged 'los'",
            "/api/curves": "no run has logged ''",
            "/api/runs/a/b": "there is no run 'a/b'",
            "/nowhere": "there is nothing at this path",
            "/static/../app.py": "there is nothing at this path",
        }.items():
            answer = ask(url, path)
            assert (answer.status, answer.content) == (404, {"error": text})
        made.changes["gap_sentence"] = float("nan")
        assert ask(url, "/api/study").content["gap_sentence"] is None


def test_only_the_page_may_style_attributes_and_nothing_may_come_from_elsewhere() -> None:
    with site(MadeUp(sizes=(8,), seeds=1), token="secret") as url:
        page = ask(url, "/")
        policy = dict(part.split(" ", 1) for part in page.headers[POLICY].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["style-src-attr"] == "'unsafe-inline'"
        answer = ask(url, "/api/study")
        assert answer.status == 401
        assert "unsafe-inline" not in answer.headers[POLICY]
        addresses = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
        assert addresses and all(re.match(r"/(static|api)/|#", one) for one in addresses)
        script = next(one for one in addresses if "plotly-" in one)
        sent = ask(url, script)
        assert "immutable" in sent.headers["Cache-Control"]
        assert b"Plotly" in sent.body
        assert ask(url, "/", Host="evil.example").status == 200  # behind a token any name is good
    with site(MadeUp(sizes=(8,), seeds=1)) as url:
        assert ask(url, "/api/study", Host="evil.example").status == 400
