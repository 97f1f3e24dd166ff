"""A model that is slow for a while, and clients that attack a server, with a client beside them.

`python -m benchmarks.serve.hostile [spells | attacks]`. The server is `rightbatch serve` with a
token, in a process of its own; a client with the token asks at a steady rate all the time. Each
attack lasts 20 s; a spell makes the model ten times as slow for 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from PIL import Image

from benchmarks._record import run_parts, say

NAME = "serve_hostile"
TARGET = 0.1  # seconds
RATE = 20.0  # requests of the client in a second
SPELLS, SPELL_SECONDS, AFTER_SECONDS = 5, 30.0, 20.0
BEFORE_SECONDS, ATTACK_SECONDS = 10.0, 20.0
WINDOW = 100  # requests in a row of which 99% are in time: the server is back
TOKEN = "benchmark-token"
MODEL = """
import os, signal, time

slow = False

def toggle(*_):
    global slow
    slow = not slow

signal.signal(signal.SIGUSR1, toggle)

def model(images):
    time.sleep((0.015 + 0.002 * len(images)) * (10 if slow else 1))
    return [float(image.mean()) for image in images]
"""


def main() -> None:
    run_parts(NAME, {"spells": spells, "attacks": attacks}, table, __doc__)


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a server."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "served.py").write_text(MODEL)
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "rightbatch", "serve", "served.py:model"]
        options = ["--latency", f"{TARGET}s", "--http", "0", "--no-page"]
        with log.open("w") as file:
            server = subprocess.Popen(
                [*command, *options], cwd=folder, stderr=file, env=os.environ | ENVIRONMENT
            )
        try:
            port = _port(server, log)
            yield port, psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


ENVIRONMENT = {"RIGHTBATCH_TOKEN": TOKEN}


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/predict", log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


class Client:
    """Asks at a steady rate in a thread; keeps when each request was due and if it was in time."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/predict"
        self._body = _encoded(np.zeros((48, 64, 3), np.uint8), "PNG")
        self._is_on = True
        self.outcomes: list[tuple[float, bool]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))
        self._thread.start()

    def stop(self) -> None:
        self._is_on = False
        self._thread.join()

    def between(self, start: float, end: float) -> list[tuple[float, bool]]:
        """Requests due in an interval of the monotonic clock, in order."""
        return sorted(one for one in self.outcomes if start <= one[0] < end)

    async def _ask(self) -> None:
        headers = {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(
            headers=headers, timeout=aiohttp.ClientTimeout(total=5)
        ) as session:
            due, tasks = time.monotonic(), set()
            while self._is_on:
                task = asyncio.create_task(self._one(session, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due += 1 / RATE
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
            await asyncio.gather(*tasks)

    async def _one(self, session: aiohttp.ClientSession, due: float) -> None:
        is_in_time = False
        try:
            async with session.post(self._url, data=self._body) as response:
                await response.read()
                is_in_time = response.status == 200 and time.monotonic() - due <= TARGET
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.outcomes.append((due, is_in_time))


def back_after(outcomes: Sequence[tuple[float, bool]], ended: float) -> float | None:
    """Seconds from `ended` to the first request from which `WINDOW` in a row are 99% in time."""
    came = [outcome for outcome in outcomes if outcome[0] >= ended]
    for index in range(len(came) - WINDOW + 1):
        served = sum(is_in_time for _, is_in_time in came[index : index + WINDOW])
        if came[index][1] and served >= 0.99 * WINDOW:
            return came[index][0] - ended
    return None


def share(outcomes: Sequence[tuple[float, bool]]) -> float:
    return sum(is_in_time for _, is_in_time in outcomes) / len(outcomes)


def spells() -> dict[str, Any]:
    """How soon a server answers in time again after its model was ten times as slow."""
    found = []
    with serving() as (port, process):
        client = Client(port)
        try:
            time.sleep(8)  # calibration
            for index in range(SPELLS):
                say(f"spell {index + 1} of {SPELLS}")
                start = time.monotonic()
                time.sleep(BEFORE_SECONDS)
                process.send_signal(signal.SIGUSR1)
                began = time.monotonic()
                time.sleep(SPELL_SECONDS)
                process.send_signal(signal.SIGUSR1)
                ended = time.monotonic()
                time.sleep(AFTER_SECONDS)
                came = client.between(ended, time.monotonic() - 5)
                found.append(
                    {
                        "before": share(client.between(start, began)),
                        "during": share(client.between(began, ended)),
                        "back_after_s": back_after(came, ended),
                    }
                )
        finally:
            client.stop()
    return {"seconds": SPELL_SECONDS, "rate": RATE, "target_ms": 1000 * TARGET, "spells": found}


def attacks() -> dict[str, Any]:
    """What the client and the server's memory notice of each attack."""
    return {"seconds": ATTACK_SECONDS, "attacks": {name: _attacked(name) for name in ATTACKS}}


Attack = Callable[[int, Callable[[], bool]], None]


def _attacked(name: str) -> dict[str, Any]:
    say(name)
    with serving() as (port, process):
        client = Client(port)
        peak = Peak(process)
        try:
            time.sleep(8)  # calibration, and the connections of the client itself
            start = time.monotonic()
            time.sleep(BEFORE_SECONDS)
            began, memory = time.monotonic(), peak.restart()
            until = began + ATTACK_SECONDS
            attacker = _SPAWN.Process(target=_attack, args=(name, port, until))
            attacker.start()
            attacker.join()
            ended = time.monotonic()
            highest = peak.restart()
            time.sleep(5)
        finally:
            peak.stop()
            client.stop()
        return {
            "before": share(client.between(start, began)),
            "during": share(client.between(began, ended)),
            "memory_grew_bytes": highest - memory,
        }


def _attack(name: str, port: int, until: float) -> None:
    """Run in a process of its own: the client must not notice the attacker but by the server."""
    ATTACKS[name](port, lambda: time.monotonic() < until)


_SPAWN = multiprocessing.get_context("spawn")


class Peak:
    """The highest resident memory of a process and its children, looked at 20 times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._highest, self._is_on = process, 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def restart(self) -> int:
        """Return the highest since the last call."""
        highest, self._highest = self._highest, 0
        return highest

    def stop(self) -> None:
        self._is_on = False
        self._thread.join()

    def _watch(self) -> None:
        while self._is_on:
            total = 0
            for one in [self._process, *self._process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += one.memory_info().rss
            self._highest = max(self._highest, total)
            time.sleep(0.05)


def endless_headers(port: int, is_on: Callable[[], bool]) -> None:
    """Eight connections whose headers do not end."""
    _in_threads(
        8, lambda: _send_until_closed(port, b"X-A: " + b"a" * 65_000 + b"\r\n", is_on), is_on
    )


def idle_connections(port: int, is_on: Callable[[], bool]) -> None:
    """Two thousand connections that wait with half a request, opened again when they are closed."""
    waiting: list[socket.socket] = []
    while is_on():
        with contextlib.suppress(OSError):
            one = socket.create_connection(("127.0.0.1", port), timeout=1)
            one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
            waiting.append(one)
        if len(waiting) > 2000:
            waiting.pop(0).close()
        time.sleep(0.002)
    for one in waiting:
        one.close()


def guessed_tokens(port: int, is_on: Callable[[], bool]) -> None:
    """Wrong tokens from sixteen connections."""
    request = b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %d\r\n\r\n"
    _in_threads(16, lambda: _ask_until_closed(port, request % time.monotonic_ns(), is_on), is_on)


def slow_bodies(port: int, is_on: Callable[[], bool]) -> None:
    """Large bodies without a token, of which a byte comes in a second."""
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30000000\r\n\r\n"
    waiting = []
    while is_on():
        with contextlib.suppress(OSError):
            one = socket.create_connection(("127.0.0.1", port), timeout=1)
            one.sendall(head)
            waiting.append(one)
        for one in waiting[-300:]:
            with contextlib.suppress(OSError):
                one.sendall(b"x")
        time.sleep(0.05)
    for one in waiting:
        one.close()


def picture_bombs(port: int, is_on: Callable[[], bool]) -> None:
    """Small files of huge pictures, with the token: 49 megapixels as PNG, and more than allowed."""
    bombs = [_flat_png(7000, 7000), _flat_png(60_000, 60_000)]
    _in_threads(2, lambda: [_post(port, bomb, "image/png") for bomb in bombs], is_on)


def gzip_bombs(port: int, is_on: Callable[[], bool]) -> None:
    """Bodies of a megabyte that unpack to a gigabyte, with the token."""
    bomb = gzip.compress(bytes(2**30), 6)
    _in_threads(2, lambda: _post(port, bomb, "image/png", "Content-Encoding: gzip\r\n"), is_on)


ATTACKS: dict[str, Attack] = {
    "headers without an end": endless_headers,
    "idle connections": idle_connections,
    "guessed tokens": guessed_tokens,
    "slow bodies": slow_bodies,
    "small files of huge pictures": picture_bombs,
    "gzip of a gigabyte": gzip_bombs,
}


def _in_threads(count: int, repeated: Callable[[], Any], is_on: Callable[[], bool]) -> None:
    def loop() -> None:
        while is_on():
            with contextlib.suppress(OSError):
                repeated()
            time.sleep(0.01)

    threads = [threading.Thread(target=loop) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send_until_closed(port: int, piece: bytes, is_on: Callable[[], bool]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=1) as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        while is_on():
            one.sendall(piece)


def _ask_until_closed(port: int, request: bytes, is_on: Callable[[], bool]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        while is_on():
            one.sendall(request)
            if not one.recv(65536):
                return


def _post(port: int, body: bytes, kind: str, more: str = "") -> None:
    head = (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: {kind}\r\n{more}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        one.sendall(head.encode() + body)
        while one.recv(65536):
            pass


def _encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _flat_png(width: int, height: int) -> bytes:
    """A black picture of one bit per pixel, written row by row: it is never whole in memory."""
    pack = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x01\x00\x00\x00\x00"

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", size), (b"IDAT", data), (b"IEND", b""))
    )


def table(results: dict[str, Any]) -> str:
    lines = []
    if "spells" in results:
        found = results["spells"]["found"]
        lines += [
            f"A model that is ten times as slow for {found['seconds']:.0f} s, at {found['rate']:g} "
            f"requests a second and a target of {found['target_ms']:.0f} ms:",
            "",
            "| in target before | during | back to 99% after |",
            "|---|---|---|",
        ]
        for one in found["spells"]:
            back = "never" if one["back_after_s"] is None else f"{one['back_after_s']:.1f} s"
            lines.append(f"| {one['before']:.1%} | {one['during']:.1%} | {back} |")
        lines.append("")
    if "attacks" in results:
        found = results["attacks"]["found"]
        lines += [
            f"Attacks of {found['seconds']:.0f} s, while a client with the token asks:",
            "",
            "| attack | in target before | meanwhile | memory |",
            "|---|---|---|---|",
        ]
        for name, one in found["attacks"].items():
            grew = one["memory_grew_bytes"] / 1e6
            lines.append(f"| {name} | {one['before']:.1%} | {one['during']:.1%} | {grew:+.0f} MB |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
