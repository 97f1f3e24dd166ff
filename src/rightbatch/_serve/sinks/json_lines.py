"""JSON lines, to a file or to a stream."""

from __future__ import annotations

from io import SEEK_END, FileIO
from pathlib import Path
from typing import TextIO

from rightbatch._errors import UsageError
from rightbatch._serve.redaction import describe_error
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.sink import ReaderGoneError


class JsonLinesSink:
    """JSON lines at the end of a file, or on a stream, each there as soon as it comes.

    A raw stream is better than a buffered one, whose lock a reader that has stopped keeps for ever.

    Raises:
        UsageError: if the file cannot be written.
    """

    def __init__(self, to: Path | TextIO | FileIO) -> None:
        self._is_ours = isinstance(to, Path)
        self._file = _opened(to) if isinstance(to, Path) else to if isinstance(to, FileIO) else None
        self._stream = None if isinstance(to, Path | FileIO) else to
        # Whoever wrote there before may have been killed in the middle of a line.
        self._is_torn = isinstance(to, Path) and _is_torn(to)
        self.name = str(to if isinstance(to, Path) else getattr(to, "name", type(to).__name__))

    def put(self, line: Line) -> None:
        text = line.to_json() + "\n"
        if self._file is not None:
            try:
                self._put(self._file, text)
            except BrokenPipeError as error:
                if self._is_ours:
                    raise
                raise ReaderGoneError(describe_error(error)) from error
        elif self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except BrokenPipeError as error:
                raise ReaderGoneError(describe_error(error)) from error

    def close(self, timeout: float = 5.0) -> int:
        if self._file is not None and self._is_ours:
            self._file.close()
        return 0

    def _put(self, file: FileIO, text: str) -> None:
        """A full disk may have taken half of the line before: that one ends there."""
        data = memoryview((b"\n" if self._is_torn else b"") + text.encode())
        while data:
            data = data[file.write(data) :]
            self._is_torn = len(data) > 0


def _opened(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {describe_error(error)}") from None


def _is_torn(path: Path) -> bool:
    """Whether its last line has no end."""
    try:
        with path.open("rb") as file:
            file.seek(-1, SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # empty, or a pipe
        return False
