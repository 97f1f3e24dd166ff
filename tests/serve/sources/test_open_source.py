"""What a source may be given as, how it is named, and what of it may be shown."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.redaction import describe_error, redact
from rightbatch._serve.sources.frames import SourceSpec, Timeouts
from rightbatch._serve.sources.open import open_source


@pytest.mark.parametrize(
    ("source", "name", "url", "is_live"),
    [
        ("rtsp://line1/cam", "line1", "rtsp://line1/cam", True),
        ("rtsp://user:pw@line1:8554/cam", "line1", "rtsp://***@line1:8554/cam", True),
        ("RTSP://10.0.0.7/1?token=abc", "10.0.0.7", "rtsp://10.0.0.7/1?token=***", True),
        ("rtmp://hall/live", "hall", "rtmp://hall/live", True),
        ("http://hall/mjpeg", "hall", "http://hall/mjpeg", True),
        ("https://hall/films/parts.mp4", "hall", "https://hall/films/parts.mp4", False),
        (0, "webcam0", "webcam:0", True),
        ("1", "webcam1", "webcam:1", True),
        ("webcam:12", "webcam12", "webcam:12", True),
    ],
)
def test_cameras_are_named_by_their_host(
    source: str | int, name: str, url: str, is_live: bool
) -> None:
    spec = open_source(source)
    assert (spec.name, spec.url, spec.is_live) == (name, url, is_live)


def test_files_and_folders_are_named_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "parts.v2.mp4").touch()
    (tmp_path / "night.shift").mkdir()
    (tmp_path / "night.shift" / "a.PNG").touch()
    for given_as, name in (
        (tmp_path / "parts.v2.mp4", "parts.v2"),
        (str(tmp_path / "parts.v2.mp4"), "parts.v2"),
        ((tmp_path / "parts.v2.mp4").as_uri(), "parts.v2"),
        (tmp_path / "night.shift", "night.shift"),
        (tmp_path / "night.shift" / "a.PNG", "a"),
    ):
        spec = open_source(given_as)
        assert spec.name == name
        assert not spec.is_live


def test_an_iterable_is_named_by_the_function_that_made_it() -> None:
    def belt():  # type: ignore[no-untyped-def]
        yield np.zeros((4, 4, 3), np.uint8)

    assert open_source(belt()).name == "belt"
    assert open_source([np.zeros((4, 4, 3), np.uint8)]).name == "list"


def test_a_spec_stays_itself() -> None:
    spec = open_source("rtsp://line1/cam")
    assert open_source(spec) is spec


def test_a_camera_that_is_absent_is_no_wrong_use() -> None:
    assert open_source("rtsp://no.such.host.invalid/cam").is_live


@pytest.mark.parametrize(
    "source",
    ["nowhere.mp4", Path("nowhere"), "ftp://line1/cam", "gopher://x", 3.5, None, True, object()],
)
def test_what_can_be_no_source_is_refused_with_what_can(source: object) -> None:
    with pytest.raises(UsageError, match=r"supported: |a source is"):
        open_source(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("rtsp://", "no valid host"),
        ("http:///live", "no valid host"),
        ("a" * 5000, "cannot be read"),
        ("webcam:" + "9" * 5000, "cannot be read"),
        ("file://nas/film.mp4", "files of other machines are not read"),
    ],
)
def test_what_can_never_be_opened_is_refused_at_once(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        open_source(source)
    assert len(str(refusal.value)) < 500


def test_streams_without_a_host_are_listened_to() -> None:
    assert open_source("udp://:1234").is_live


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_that_is_called_a_picture_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UsageError, match="is not a file"):
        open_source(tmp_path / "a.png")
    with pytest.raises(UsageError, match="contains no picture"):
        open_source(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"contains no picture.*\.png"):
        open_source(tmp_path)


def test_what_is_not_installed_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rightbatch._serve.sources.open.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rightbatch\[serve\]"):
        open_source("rtsp://line1/cam")


def test_a_password_that_breaks_the_url_is_refused_without_being_shown() -> None:
    with pytest.raises(UsageError, match="%2F") as raised:
        open_source("rtsp://admin:se/cret@line1/cam")
    assert "cret" not in str(raised.value)
    with pytest.raises(UsageError, match="%20") as raised:
        open_source("rtsp://admin:sec ret@line1/cam")
    assert "ret@" not in str(raised.value)


_SECRETS = st.text("abcdefghijkXYZ0123456789!$*()+,;=:@-._~%/?#'\"", min_size=4)


@given(secret=_SECRETS)
def test_no_password_before_an_at_is_shown(secret: str) -> None:
    secret = f"S3{secret}E3"
    shown = redact(f"[Errno 5] no answer: 'rtsp://admin:{secret}@line1:554/cam', tried twice")
    assert shown == "[Errno 5] no answer: 'rtsp://***@line1:554/cam', tried twice"


@pytest.mark.parametrize("key", ["password", "pwd", "token", "Auth", "api_key", "secret", "sig"])
def test_no_parameter_that_is_named_like_a_password_is_shown(key: str) -> None:
    for url in (f"http://line1/video?user=a&{key}=S3cret&x=1", f"rtsp://line1/{key}=S3cret&x=1"):
        assert "S3cret" not in redact(url)
        assert redact(url).endswith("***&x=1")


def test_what_an_error_says_is_one_line_without_passwords() -> None:
    assert (
        describe_error(OSError(111, "Connection refused", "rtsp://a:b@c/")) == "Connection refused"
    )
    assert describe_error(ValueError("no\n  such rtsp://a:b@c/")) == "no such rtsp://***@c/"
    assert describe_error(KeyError()) == "KeyError"


def test_a_spec_shows_no_password() -> None:
    spec = open_source("rtsp://admin:S3cret@line1/cam")
    assert "S3cret" not in f"{spec.name} {spec.url} {spec} {spec!r}"


def test_a_source_of_ones_own_is_a_spec() -> None:
    class Blank:
        is_live = False

        def open(self) -> None: ...

        def read(self) -> None: ...

        def close(self) -> None: ...

    spec = SourceSpec("blank", "blank", False, lambda timeouts: Blank())
    assert open_source(spec).make(Timeouts()).read() is None
