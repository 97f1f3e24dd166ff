"""`serve`: start a server for a model and its sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rightbatch._serve.engine.records import Contract
from rightbatch._serve.server import Server


def serve(
    model: Any,
    sources: Any = (),
    latency: float | str = "100ms",
    *,
    http: int | None = None,
    host: str = "127.0.0.1",
    token: str | None = None,
    contract: Contract | None = None,
    **options: Any,
) -> Server:
    """Serve a model to sources in batches under one latency target; return the running server.

    ::

        with rb.serve("yolo26n.onnx", ["rtsp://line1/cam", "parts.mp4"], latency="100ms") as server:
            for line in server:
                print(line.source, line.frame, line.result)

    Args:
        model: as for `Server`.
        sources: one source, a list, or a mapping of names to sources; see `Server.add`.
        latency: target from a frame's capture to its result: seconds, or text like `"100ms"`.
        http: port that accepts images and shows the page.
        host: bind address; a non-loopback address requires a token.
        token: that requests must send.
        contract: of all sources; see `Server.add`.
        options: of `Server`.

    Raises:
        UsageError: if an argument is invalid.
        MissingExtraError: if a required package is not installed.
    """
    server = Server(model, latency, **options)
    try:
        for name, source in _named(sources):
            server.add(source, name=name, contract=contract)
        if http is not None:
            server.listen(http, host=host, token=token)
    except BaseException:
        server.stop(0)
        raise
    return server


def _named(sources: Any) -> Iterable[tuple[str | None, Any]]:
    if isinstance(sources, Mapping):
        return list(sources.items())
    if isinstance(sources, list | tuple) and not any(hasattr(one, "shape") for one in sources):
        return [(None, source) for source in sources]
    return [(None, sources)]
