"""Cameras over HTTP as they are: boundaries and lengths of every kind, snapshots, redirects."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from films import PATIENCE, _write, encode, film, wait_for
from films import Camera as TcpCamera
from PIL import Image

from rightbatch._serve.sources.frames import DamagedFrameError, Timeouts
from rightbatch._serve.sources.http import HttpSource
from rightbatch._serve.sources.jpegs import JpegStream
from rightbatch._serve.sources.open import open_source


def picture(value: int, format: str = "JPEG", **options: object) -> bytes:
    """With a thumbnail, which is a JPEG file inside the file."""
    file = io.BytesIO()
    image = Image.fromarray(np.full((48, 64, 3), value, np.uint8))
    if format == "JPEG":
        exif = Image.Exif()
        exif[0x010E] = "\xff\xd8\xff\xd9"
        options.setdefault("exif", exif)
        options.setdefault("comment", b"\xff\xd8\xff\xd9")
    image.save(file, format, **options)
    return file.getvalue()


VALUES = range(10, 250, 10)
HEAD = b"Content-Type: image/jpeg\r\n"


def plain(value: int) -> bytes:
    return b"--cam\r\n" + HEAD + b"\r\n" + picture(value) + b"\r\n"


def with_length(value: int) -> bytes:
    body = picture(value)
    return b"--cam\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\r\n"


def too_long(value: int) -> bytes:
    return with_length(value).replace(b"Content-Length: ", b"Content-Length: 9")


def too_short(value: int) -> bytes:
    body = picture(value)
    return b"--cam\r\n" + HEAD + b"Content-Length: 7\r\n\r\n" + body + b"\r\n"


def late_boundary(value: int) -> bytes:
    return HEAD + b"\r\n" + picture(value) + b"\r\n--cam\r\n"


def no_boundary(value: int) -> bytes:
    return picture(value)


def progressive(value: int) -> bytes:
    return b"--cam\r\n\r\n" + picture(value, progressive=True)


def several(value: int) -> bytes:
    """A photo as telephones write it: a smaller picture follows in the same file."""
    file = io.BytesIO()
    images = [Image.fromarray(np.full((side, 64, 3), value, np.uint8)) for side in (48, 24)]
    images[0].save(file, "MPO", save_all=True, append_images=images[1:])
    return file.getvalue()


def several_in_parts(value: int) -> bytes:
    return b"--cam\r\n" + HEAD + b"\r\n" + several(value) + b"\r\n"


def first_of_several(value: int) -> bytes:
    """Its header says that a picture follows, which the camera leaves out."""
    file = several(value)
    return b"--cam\r\n\r\n" + file[: file.rindex(b"\xff\xd8\xff")] + b"\r\n"


MULTIPART = "multipart/x-mixed-replace; boundary="
STREAMS: dict[str, tuple[str | None, Callable[[int], bytes]]] = {
    "/plain": (MULTIPART + "cam", plain),
    "/quoted": (MULTIPART + '"cam"', plain),
    "/dashes": (MULTIPART + "--cam", plain),
    "/other-boundary": (MULTIPART + "somethingelse", plain),
    "/nameless": ("multipart/x-mixed-replace", plain),
    "/length": (MULTIPART + "cam", with_length),
    "/too-long": (MULTIPART + "cam", too_long),
    "/too-short": (MULTIPART + "cam", too_short),
    "/late": (MULTIPART + "cam", late_boundary),
    "/none": (MULTIPART + "cam", no_boundary),
    "/progressive": (MULTIPART + "cam", progressive),
    "/several": (MULTIPART + "cam", several_in_parts),
    "/several-alone": (None, several),
    "/first-of-several": (MULTIPART + "cam", first_of_several),
    "/octets": ("application/octet-stream", plain),
    "/typeless": (None, plain),
    "/motion": ("video/x-motion-jpeg", no_boundary),
}


SNAPSHOTS: dict[str, tuple[str | None, Callable[[int], bytes]]] = {
    "/snapshot.jpg": ("image/jpeg", picture),
    "/snapshot.png": ("image/png", lambda value: picture(value, "PNG")),
    "/snapshot-of-several": ("image/jpeg", several),
    "/snapshot-of-octets": ("application/octet-stream", lambda value: picture(value, "PNG")),
    "/snapshot-webp": (None, lambda value: picture(value, "WEBP", quality=100)),
    "/snapshot-bmp": ("text/plain", lambda value: picture(value, "BMP")),
}


class Camera(BaseHTTPRequestHandler):
    snapshots = 0
    folder = Path()
    asked: ClassVar[list[str]] = []
    algorithm = ""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, kind: str | None, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        Camera.asked.append(f"{self.headers['Host'].partition(':')[0]}{path}")
        if path in STREAMS:
            kind, part = STREAMS[path]
            self.answer(kind, b"".join(part(value) for value in VALUES))
        elif path in SNAPSHOTS:
            Camera.snapshots += 1
            kind, make = SNAPSHOTS[path]
            body = make(10 * Camera.snapshots)
            self.answer(kind, body, Content_Length=str(len(body)))
        elif path == "/gzip":
            body = gzip.compress(picture(10))
            self.answer("image/jpeg", body, Content_Encoding="gzip", Content_Length=str(len(body)))
        elif path == "/login":
            wanted = "Basic " + base64.b64encode(b"me:p@ss/1#").decode()
            if self.headers.get("Authorization") == wanted:
                self.answer(MULTIPART + "cam", plain(10))
            else:
                self.answer(None, b"", 401, WWW_Authenticate='Basic realm="camera"')
        elif path.startswith("/digest"):
            self.digest(path.rpartition("/")[2].split(","))
        elif path == "/to-digest":
            self.answer(None, b"", 302, Location="/digest/MD5")
        elif path == "/negotiate":
            self.answer(None, b"", 401, WWW_Authenticate="Negotiate")
        elif path == "/live-hls":  # FFmpeg takes a path without .m3u8 for none
            body = (Camera.folder / "film.m3u8").read_text().replace("film", "/hls/film").encode()
            self.answer("application/vnd.apple.mpegurl", body, Content_Length=str(len(body)))
        elif path == "/here":
            self.answer(None, b"", 302, Location="/plain")
        elif path == "/elsewhere":
            self.answer(None, b"", 302, Location="http://localhost:1/plain")
        elif path.startswith("/invalid"):
            place = {"/invalid-port": "http://127.0.0.1:99999/", "/invalid-host": "http://[::1/"}
            self.answer(None, b"", 302, Location=place[path])
        elif path == "/file":
            self.answer(None, b"", 302, Location="file:///etc/passwd")
        elif path == "/to-film.mp4":
            self.answer(None, b"", 302, Location="/hls/film.mp4")
        elif path == "/away.mp4":
            self.answer(
                None, b"", 302, Location=f"http://localhost:{self.server.server_port}/plain"
            )
        elif path.startswith("/hls/"):
            body = (Camera.folder / path.removeprefix("/hls/")).read_bytes()
            kind = "application/vnd.apple.mpegurl" if path.endswith("m3u8") else "video/mp2t"
            self.answer(kind, body, Content_Length=str(len(body)))
        elif path == "/other.m3u8":
            body = (Camera.folder / "film.m3u8").read_text()
            base = f"http://localhost:{self.server.server_port}/hls/film"
            self.answer("application/vnd.apple.mpegurl", body.replace("film", base).encode())
        elif path == "/cut":
            whole = plain(10)
            self.answer(MULTIPART + "cam", whole[:-20] + plain(20) + plain(30))
        else:
            self.answer(None, b"", 404)

    def digest(self, algorithms: list[str]) -> None:
        """Answer with a picture if the login is right by the first challenge that is known."""
        found = dict(re.findall(r'(\w+)="?([^",]*)"?', self.headers.get("Authorization", "")))
        if found.get("algorithm") in HASHES:
            response = digest_response(found, LOGIN, self.path, HASHES[found["algorithm"]])
            if found["nonce"] == "fresh" and found["response"] == response:
                Camera.algorithm = found["algorithm"]
                self.answer("image/jpeg", picture(10))
                return
        self.send_response(401)
        for algorithm in algorithms:
            nonce = "fresh" if found else "old"
            stale = ", stale=true" if found.get("nonce") == "old" else ""
            self.send_header(
                "WWW-Authenticate",
                f'Digest realm="camera", nonce="{nonce}", algorithm={algorithm}, qop="auth"{stale}',
            )
        self.send_header("WWW-Authenticate", 'Basic realm="camera"')
        self.end_headers()


LOGIN = ("me", "pä/ss:1#")
HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


def digest_response(
    found: dict[str, str], login: tuple[str, str], path: str, new: Callable[[bytes], Any]
) -> str:
    """The response that RFC 7616, 3.4.1 asks for."""

    def digest(*parts: str) -> str:
        return str(new(":".join(parts).encode()).hexdigest())

    secret = digest(login[0], "camera", login[1])
    middle = found["nonce"], found["nc"], found["cnonce"], "auth"
    return digest(secret, *middle, digest("GET", path))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    Camera.folder = tmp_path_factory.mktemp("hls")
    encode(Camera.folder / "film.mp4", film(20))
    with av.open(str(Camera.folder / "film.m3u8"), "w", format="hls") as output:
        stream = output.add_stream("libx264", rate=20)
        _write(output, stream, film(20), {"g": "10", "bf": "0"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def opened(url: str) -> HttpSource:
    source = open_source(url).make(Timeouts(open=PATIENCE, read=PATIENCE))
    assert isinstance(source, HttpSource)
    source.open()
    return source


def values(source: HttpSource, most: int) -> list[int]:
    found = []
    while len(found) < most and (read := source.read()) is not None:
        found.append(round(float(read[0].mean()), -1))
    source.close()
    return [int(value) for value in found]


@pytest.mark.parametrize("path", STREAMS)
def test_every_picture_of_a_stream_is_read_whatever_its_boundaries(url: str, path: str) -> None:
    assert values(opened(url + path), 100) == [*VALUES]


@pytest.mark.parametrize("path", SNAPSHOTS)
def test_a_snapshot_is_fetched_again_and_again(url: str, path: str) -> None:
    Camera.snapshots = 0
    assert values(opened(url + path), 4) == [10, 20, 30, 40]


def test_a_picture_that_is_cut_off_costs_only_itself(url: str) -> None:
    source = opened(url + "/cut")
    with pytest.raises(DamagedFrameError):
        source.read()
    assert values(source, 9) == [20, 30]


def test_a_login_in_the_url_is_sent(url: str) -> None:
    with_login = url.replace("http://", "http://me:p%40ss%2F1%23@")
    assert values(opened(with_login + "/login"), 1) == [10]


@pytest.mark.parametrize(
    ("challenges", "taken"),
    [
        ("MD5", "MD5"),
        ("SHA-256", "SHA-256"),
        ("SHA-256,MD5", "SHA-256"),
        ("MD5,SHA-256", "SHA-256"),
        ("SHA-512-256,MD5", "MD5"),
    ],
)
def test_the_best_digest_of_a_camera_is_taken(url: str, challenges: str, taken: str) -> None:
    """Cameras send one challenge for each hash (RFC 7616); the first nonce is stale here."""
    with_login = url.replace("http://", "http://me:p%C3%A4%2Fss%3A1%23@")
    assert values(opened(f"{with_login}/digest/{challenges}"), 1) == [10]
    assert Camera.algorithm == taken


def test_a_login_is_sent_after_a_redirect_on_the_same_host(url: str) -> None:
    with_login = url.replace("http://", "http://me:p%C3%A4%2Fss%3A1%23@")
    assert values(opened(with_login + "/to-digest"), 1) == [10]


@pytest.mark.parametrize("path", ["/digest/MD5", "/login", "/negotiate"])
def test_a_wrong_password_is_sent_twice_at_most(url: str, path: str) -> None:
    """Many cameras lock a login after five wrong ones, for half an hour."""
    Camera.asked.clear()
    with pytest.raises(OSError, match="HTTP status 401"):
        opened(url.replace("http://", "http://me:wrong@") + path)
    assert len(Camera.asked) <= 4  # without a login, by Digest with either nonce, and by Basic


def test_redirects_are_followed_on_the_same_host_only(url: str) -> None:
    assert values(opened(url + "/here"), 2) == [10, 20]
    with pytest.raises(OSError, match="redirects to another host, http://localhost"):
        opened(url + "/elsewhere")
    with pytest.raises(OSError, match="file://"):
        opened(url + "/file")
    for path in ("/invalid-port", "/invalid-host"):
        with pytest.raises(OSError, match="redirects to an invalid URL"):
            opened(url + path)


def test_a_playlist_is_read_as_far_as_it_stays_on_the_host(url: str) -> None:
    for path in ("/hls/film.m3u8", "/live-hls"):
        source = opened(url + path)
        assert source.read() is not None
        source.close()
    Camera.asked.clear()
    with pytest.raises((OSError, ValueError)):
        opened(url + "/other.m3u8").read()
    assert {asked.partition("/")[0] for asked in Camera.asked} == {"127.0.0.1"}


def test_a_film_on_a_web_server_is_read_after_a_redirect_on_the_same_host(url: str) -> None:
    source = open_source(url + "/to-film.mp4").make(Timeouts(open=PATIENCE, read=PATIENCE))
    source.open()
    frames = 0
    while source.read() is not None:
        frames += 1
    source.close()
    assert frames == 20
    away = open_source(url + "/away.mp4").make(Timeouts(open=PATIENCE, read=PATIENCE))
    with pytest.raises(OSError, match="another host"):
        away.open()


def test_an_encoding_that_was_not_asked_for_is_told(url: str) -> None:
    with pytest.raises(OSError, match="Content-Encoding gzip"):
        opened(url + "/gzip")


def test_an_error_of_the_camera_is_told(url: str) -> None:
    with pytest.raises(OSError, match="404"):
        opened(url + "/nothing")


def drip(head: bytes, piece: bytes = b"a") -> Callable[[socket.socket, threading.Event], None]:
    """A camera that sends a piece now and then, for ever."""

    def behave(caller: socket.socket, closing: threading.Event) -> None:
        caller.sendall(head)
        while not closing.wait(0.02):
            caller.sendall(piece)

    return behave


OK = b"HTTP/1.1 200 OK\r\nContent-Type: "
PLAYLIST = (
    b"application/vnd.apple.mpegurl\r\nConnection: close\r\n\r\n"
    b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n"
)
DRIPS = {
    "headers": [drip(b"HTTP/1.1 200 OK\r\nX: ")],
    "interim responses": [drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
    "a picture": [drip(OK + b"image/png\r\n\r\n\x89PNG")],
    "a segment": [
        lambda caller, _: caller.sendall(OK + PLAYLIST),
        lambda caller, _: caller.sendall(OK + PLAYLIST),
        drip(OK + b"video/mp2t\r\n\r\nG"),
    ],
    "a handshake": [drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")],
}


@pytest.mark.parametrize("name", DRIPS)
def test_a_camera_that_sends_a_byte_now_and_then_keeps_no_thread(name: str) -> None:
    ended = threading.Event()
    with TcpCamera(*DRIPS[name]) as camera:
        scheme = "https" if name == "a handshake" else "http"
        spec = open_source(f"{scheme}://127.0.0.1:{camera.port}/live")
        source = spec.make(Timeouts(open=PATIENCE, read=PATIENCE))

        def read() -> None:
            with contextlib.suppress(Exception):
                source.open()
                source.read()
            ended.set()

        thread = threading.Thread(target=read)
        thread.start()
        wait_for(lambda: camera.calls == len(DRIPS[name]))
        assert not ended.wait(0.2), "it reads what comes"
        source.close()
        assert ended.wait(PATIENCE / 2)
        thread.join()


@pytest.mark.parametrize("name", ["headers", "interim responses"])
def test_a_film_of_a_web_server_that_sends_a_byte_now_and_then_fails(name: str) -> None:
    with TcpCamera(*DRIPS[name]) as camera:
        source = open_source(f"http://127.0.0.1:{camera.port}/film.mp4").make(Timeouts(open=0.3))
        with pytest.raises((OSError, av.error.FFmpegError)):
            source.open()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_files_are_found_however_the_stream_is_cut(size: int) -> None:
    files = [picture(value) for value in (10, 20, 30)]
    data = b"junk\xff".join([b"", *files, b"\xff\xd8"])
    stream = JpegStream(most=10_000)
    found = [
        file for start in range(0, len(data), size) for file in stream.feed(data[start:][:size])
    ]
    assert found == files


def test_a_file_without_an_end_is_given_up() -> None:
    stream = JpegStream(most=10_000)
    endless = picture(10)[:-2] + bytes(20_000)
    assert [*stream.feed(endless)] == [None]
    assert [*stream.feed(picture(20))] == [picture(20)]
