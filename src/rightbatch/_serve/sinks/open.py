"""Open the sinks that `to` names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, TextIO, TypeGuard

from rightbatch._errors import UsageError
from rightbatch._serve.sinks.in_process import CallbackSink
from rightbatch._serve.sinks.json_lines import JsonLinesSink
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.mqtt import MqttSink
from rightbatch._serve.sinks.sink import Sink

Destination = str | Path | TextIO | FileIO | Callable[[Line], object] | Sink

_KNOWN = "a file, - (standard output), mqtt://HOST/TOPIC, mqtts://, a text stream or a function"


def open_sink(to: str | Path | TextIO | FileIO | Callable[[Line], object]) -> Sink:
    """Open the sink that `to` names: a file, `"-"`, an MQTT broker, a text stream or a function.

    Raises:
        UsageError: if it names none of these, or cannot be opened.
        MissingExtraError: if the MQTT client is not installed.
    """
    if to == "-":
        return JsonLinesSink(sys.stdout)
    if isinstance(to, str) and "://" in to:
        scheme = to.partition("://")[0].lower()
        if scheme not in ("mqtt", "mqtts"):
            raise UsageError(f"unsupported URL scheme {scheme}://; results can go to {_KNOWN}")
        return MqttSink(to)
    if isinstance(to, str | Path):
        return JsonLinesSink(Path(to).expanduser())
    if _is_stream(to):
        return JsonLinesSink(to)
    if callable(to):
        return CallbackSink(to)
    raise UsageError(f"results can go to {_KNOWN}; got {type(to).__name__}")


def open_sinks(to: Any) -> list[Sink]:
    """Open a destination or a list of them; if one fails, close the others.

    Raises:
        UsageError: see `open_sink`.
        MissingExtraError: see `open_sink`.
    """
    destinations = to if isinstance(to, list | tuple) else [to]
    opened: list[Sink] = []
    try:
        for destination in destinations:
            is_sink = hasattr(destination, "put") and hasattr(destination, "close")
            opened.append(destination if is_sink else open_sink(destination))
    except BaseException:
        for sink in opened:
            sink.close(0)
        raise
    return opened


def _is_stream(to: object) -> TypeGuard[TextIO | FileIO]:
    return hasattr(to, "write")
