"""An RTSP server that plays a film over TCP or UDP, redirects, or wants a password."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import av
import numpy as np
from films import _write, film

SDP = (
    "v=0\r\ns=film\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    "a=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
)


@cache
def rtp_packets(count: int = 40) -> list[bytes]:
    """A film as RTP packets of H.264."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.setblocking(False)
        found: list[bytes] = []
        url = f"rtp://127.0.0.1:{sink.getsockname()[1]}"
        with av.open(url, "w", format="rtp") as output:
            stream = output.add_stream("libx264", rate=20)

            def frames() -> Iterator[np.ndarray]:
                for frame in film(count):
                    yield frame
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            found.append(sink.recv(65536))

            _write(output, stream, frames(), {"g": "10", "bf": "0"})
        return [packet for packet in found if packet[1] & 127 == 96]  # no RTCP


class RtspServer(socketserver.ThreadingTCPServer):
    """`transports` are those that it takes; `location`, if given, is where it redirects;
    `login`, if given, is the value of the Authorization header that it wants."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, *transports: str, location: str | None = None, login: str | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.transports, self.location, self.login = transports, location, login
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def rtsp_server(*transports: str, **options: Any) -> Iterator[RtspServer]:
    rtp_packets()
    with RtspServer(*transports, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Session(socketserver.StreamRequestHandler):
    server: RtspServer

    def handle(self) -> None:
        self.transport = ""
        with contextlib.suppress(OSError):
            while (line := self.rfile.readline().decode()).strip():
                headers = {}
                while (text := self.rfile.readline().decode().strip()) != "":
                    name, _, content = text.partition(":")
                    headers[name.lower()] = content.strip()
                self.server.requests.append(line.strip())
                self._answer(line.split()[0], headers)

    def _answer(self, method: str, headers: dict[str, str]) -> None:
        server = self.server
        if method == "OPTIONS":
            self._reply(headers, "200 OK", Public="OPTIONS, DESCRIBE, SETUP, PLAY")
        elif server.location is not None:
            self._reply(headers, "302 Found", Location=server.location)
        elif server.login is not None and headers.get("authorization") != server.login:
            self._reply(headers, "401 Unauthorized", WWW_Authenticate='Basic realm="camera"')
        elif method == "DESCRIBE":
            self._reply(headers, "200 OK", SDP, Content_Type="application/sdp")
        elif method == "SETUP":
            asked = headers["transport"].split(",")[0]
            kind = "TCP" if "TCP" in asked else "UDP"
            if kind not in server.transports:
                self._reply(headers, "461 Unsupported Transport")
                return
            self.transport = asked
            ports = ";server_port=6970-6971" if kind == "UDP" else ""
            self._reply(headers, "200 OK", Session="1", Transport=asked + ports)
        elif method == "PLAY":
            self._reply(headers, "200 OK", Session="1")
            self._play()
        else:
            self._reply(headers, "200 OK", Session="1")

    def _reply(self, asked: dict[str, str], status: str, body: str = "", **headers: str) -> None:
        headers |= {"CSeq": asked["cseq"], "Content-Length": str(len(body))}
        lines = [f"{name.replace('_', '-')}: {content}" for name, content in headers.items()]
        self.wfile.write("\r\n".join([f"RTSP/1.0 {status}", *lines, "", body]).encode())

    def _play(self) -> None:
        if "TCP" in self.transport:
            for packet in rtp_packets():
                self.wfile.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                time.sleep(0.005)
            return
        port = int(self.transport.partition("client_port=")[2].split("-")[0].split(";")[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for packet in rtp_packets():
                sender.sendto(packet, ("127.0.0.1", port))
                time.sleep(0.005)
        time.sleep(0.2)
