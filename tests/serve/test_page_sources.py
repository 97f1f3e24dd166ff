"""What the page of a real server may open, and what names of sources may contain."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sites import Answer, ask

import rightbatch as rb
from rightbatch._serve.redaction import printable
from rightbatch._serve.sources.allowed import AllowedSources

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


def mean(images: list[np.ndarray]) -> list[float]:
    return [float(image.mean()) for image in images]


def add(url: str, source: str | int, **fields: object) -> Answer:
    body = json.dumps({"source": source, **fields})
    return ask(url, "/sources", body, Content_Type="application/json")


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path / "a.png")
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[rb.Server]:
    lines: list[object] = []
    with rb.Server(
        mean,
        "5s",
        to=lines.append,
        progress=False,
        allow_source=[str(folder(tmp_path / "allowed"))],
    ) as server:
        server.add(folder(tmp_path / "named"), name="named")
        server.listen()
        yield server


def test_the_page_opens_what_was_allowed_or_named_and_nothing_else(
    server: rb.Server, tmp_path: Path
) -> None:
    url = server.url or ""
    secret = folder(tmp_path / "secret")
    (tmp_path / "allowed" / "link").symlink_to(secret)
    assert add(url, str(tmp_path / "allowed")).status == 201
    assert add(url, str(tmp_path / "allowed" / "a.png")).status == 201
    assert add(url, str(tmp_path / "named"), name="again").status == 201
    assert add(url, (tmp_path / "allowed" / "a.png").as_uri()).status == 201
    for refused in (
        str(secret),
        str(tmp_path / "allowed" / ".." / "secret"),
        str(tmp_path / "allowed" / "link"),
        secret.as_uri(),
        "/etc/passwd",
        "rtsp://127.0.0.1:1/cam",
        "http://169.254.169.254/latest",
        0,
        "webcam:0",
    ):
        answer = add(url, refused)
        assert answer.status == 422, refused
        assert "--allow-source" in answer.content["error"]


def test_the_page_adds_a_bounded_number_of_sources(
    server: rb.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rightbatch._serve.server.MOST_SOURCES", 3)
    url = server.url or ""
    answers = [add(url, str(tmp_path / "allowed")).status for _ in range(4)]
    assert answers == [201, 201, 422, 422]
    server.remove("named")
    assert add(url, str(tmp_path / "allowed")).status == 201


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_that_are_not_utf_8_or_control_a_terminal_break_nothing(
    server: rb.Server, tmp_path: Path
) -> None:
    odd = folder(tmp_path / "odd")
    raw = os.fsencode(odd)
    for name in (b"\xff\xfe.png", b"\x1b[2Jred.png", b"line\nend.png"):
        os.link(odd / "a.png", raw + b"/" + name)
    names = [
        server.add(Path(os.fsdecode(raw + b"/" + name)))
        for name in (b"\xff\xfe.png", b"\x1b[2Jred.png", b"line\nend.png")
    ]
    url = server.url or ""
    metrics = ask(url, "/metrics")
    assert metrics.status == 200
    assert ask(url, "/status").status == 200
    for name in names:
        assert name.isprintable()
        assert name.encode().decode() == name
    assert b"\x1b" not in metrics.body
    answer = add(url, str(tmp_path / "allowed"), name="\x1b]0;title\x07")
    assert answer.status == 422
    assert "\x1b" not in answer.content["error"]


@pytest.mark.parametrize(
    ("entries", "source", "is_allowed"),
    [
        (["rtsp:"], "rtsp://any/where", True),
        (["rtsp://"], "RTSP://any/where", True),
        (["rtsp"], "rtsps://any/where", False),
        (["webcam:"], 0, True),
        (["webcam"], "webcam:1", True),
        (["http://hall/cams"], "http://hall/cams/1", True),
        (["http://hall/cams"], "http://hall:80/cams", True),
        (["http://hall/cams"], "http://me:pass@HALL/cams/1?x=1", True),
        (["http://hall/cams"], "http://hall/cams2", False),
        (["http://hall/cams"], "http://hall/cams/../admin", False),
        (["http://hall/cams"], "http://hall/cams/%2e%2e/admin", False),
        (["http://hall/cams"], "http://hall/cams/..%2fadmin", False),
        (["http://hall/cams"], "http://hall/cams/%2E%2E/admin", False),
        (["http://hall/cams"], "http://hall/cams/.%2E/admin", False),
        (["http://hall/cams"], "http://hall/cams/..%5Cadmin", False),
        (["http://hall/cams"], "http://hall/cams/..;a=1/admin", False),
        (["http://hall/cams"], "http://hall/cams/a..b/..c", True),
        (["http://hall/ctl?snap=1"], "http://hall/ctl?snap=1", True),
        (["http://hall/ctl?snap=1"], "http://hall/ctl?reboot=1", False),
        (["http://hall/ctl?snap=1"], "http://hall/ctl/a?snap=1", False),
        (["http://hall/cams"], "http://hall:81/cams/1", False),
        (["http://hall/cams"], "https://hall/cams/1", False),
        (["http://hall/"], "http://hall@evil/", False),
        (["http://hall/"], "http://hall.evil/", False),
        (["http://hall"], "http://hall/any", True),
        (["http:"], "file:///etc/passwd", False),
        ([], "http://[bad", False),
        ([], "\0", False),
    ],
)
def test_schemes_and_urls_are_compared_by_their_parts(
    entries: list[str], source: str | int, is_allowed: bool
) -> None:
    allowed = AllowedSources(entries)
    if is_allowed:
        allowed.check(source)
    else:
        with pytest.raises(rb.UsageError, match="--allow-source"):
            allowed.check(source)


@pytest.mark.parametrize("entry", ["/no/such/folder", "ftp://host/", "http:///cams", "gopher:"])
def test_an_entry_that_allows_nothing_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(rb.UsageError, match="--allow-source"):
        AllowedSources([entry])


def test_text_of_any_language_stays_as_it_is() -> None:
    assert printable("Zürich 摄像机 كاميرا 📷") == "Zürich 摄像机 كاميرا 📷"
    assert printable("a\u202eb\x9bc\ud800") == "a\\u202eb\\x9bc\ufffd"
