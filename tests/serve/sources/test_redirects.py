"""Where cameras redirect to: resolved, or refused with the error of a source that fails."""

from __future__ import annotations

import io
import urllib.request

import pytest
from films import PATIENCE
from rtsp_servers import rtsp_server

from rightbatch._serve.sources import http
from rightbatch._serve.sources.frames import Timeouts
from rightbatch._serve.sources.http_lines import Lines
from rightbatch._serve.sources.rtsp import follow_redirects
from rightbatch._serve.sources.urls import resolve

INVALID = ["//cam:port/a", "//cam:99999/a", "//[::1/a", "//cam\0/a", "//cam:-1/a"]


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("rtsp://cam:8554/a/b", "c", "rtsp://cam:8554/a/c"),
        ("rtsps://cam/a/b", "/c?d", "rtsps://cam/c?d"),
        ("rtsp://me:pw@cam/a", "//cam:1/b", "rtsp://cam:1/b"),
        ("rtsp://cam/a", "rtsps://CAM/b", "rtsps://CAM/b"),
        ("http://cam/a", "https://cam/b", "https://cam/b"),
    ],
)
def test_a_location_is_resolved_against_the_url(url: str, location: str, expected: str) -> None:
    assert resolve(url, location) == expected


@pytest.mark.parametrize(
    ("url", "location", "said"),
    [
        ("rtsps://cam/a", "rtsp://cam/a", "rtsp://cam, which is not encrypted"),
        ("https://cam/a", "http://cam/a", "http://cam, which is not encrypted"),
        ("rtsp://cam/a", "rtsp://other/a", "another host, rtsp://other"),
        ("rtsp://cam/a", "http://cam/a", "another host, http://cam"),
        ("http://cam/a", "file:///etc/passwd", "another host, file://"),
        *(("rtsp://cam/a", "rtsp:" + location, "an invalid URL, rtsp:") for location in INVALID),
        ("rtsp://cam/a", "rtsp://me:secret@cam:x/", r"an invalid URL, rtsp://\*\*\*@cam:x/"),
    ],
)
def test_a_location_elsewhere_is_refused(url: str, location: str, said: str) -> None:
    with pytest.raises(OSError, match=said):
        resolve(url, location)


def test_a_camera_that_redirects_by_a_path_is_followed() -> None:
    with rtsp_server("TCP", location="film") as server:
        with pytest.raises(OSError, match="redirects more than"):
            follow_redirects(f"rtsp://me:pw@{server.address}/a/b", PATIENCE)
        assert [one.split()[1] for one in server.requests] == [
            f"rtsp://{server.address}/a/b",
            *[f"rtsp://{server.address}/a/film"] * 4,
        ]


@pytest.mark.parametrize("location", ["rtsp://127.0.0.1:99999/film", "rtsp://[::1/film"])
def test_a_camera_that_redirects_to_an_invalid_url_is_refused(location: str) -> None:
    with (
        rtsp_server("TCP", location=location) as server,
        pytest.raises(OSError, match="redirects to an invalid URL"),
    ):
        follow_redirects(f"rtsp://{server.address}/a", PATIENCE)


def test_http_keeps_its_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    request = urllib.request.Request("https://cam/a")
    answer = io.BytesIO()
    with pytest.raises(OSError, match="not encrypted"):
        http._SameHost().redirect_request(request, answer, 302, "Found", {}, "http://cam/a")
    assert answer.closed
    monkeypatch.setattr(http, "_get", lambda *_: pytest.fail("sent"))
    url, login = "https://cam/a.m3u8", "https://me:pw@cam/a.m3u8"
    files = http._SameHostFiles(url, login, Timeouts(), Lines())
    with pytest.raises(OSError, match="the playlist names http://cam, which is not encrypted"):
        files("http://cam/1.ts", 0, {})
