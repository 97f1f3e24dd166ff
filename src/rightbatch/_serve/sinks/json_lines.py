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
    """Appends JSON lines to a file or a stream, unbuffered.

    Prefer a raw stream: if the reader stops, a buffered one blocks while it holds its lock.

    Raises:
        UsageError: if the file cannot be written.
    """

    def __init__(self, to: Path | TextIO | FileIO) -> None:
        self._owns_file = isinstance(to, Path)
        self._file = _open(to) if isinstance(to, Path) else to if isinstance(to, FileIO) else None
        self._stream = None if isinstance(to, Path | FileIO) else to
        # The process that wrote before may have been killed in the middle of a line.
        self._line_is_incomplete = isinstance(to, Path) and _ends_without_newline(to)
        self.name = str(to if isinstance(to, Path) else getattr(to, "name", type(to).__name__))

    def put(self, line: Line) -> None:
        text = line.to_json() + "\n"
        if self._file is not None:
            try:
                self._write(self._file, text)
            except BrokenPipeError as error:
                if self._owns_file:
                    raise
                raise ReaderGoneError(describe_error(error)) from error
        elif self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except BrokenPipeError as error:
                raise ReaderGoneError(describe_error(error)) from error

    def close(self, timeout: float = 5.0) -> int:
        if self._file is not None and self._owns_file:
            self._file.close()
        return 0

    def _write(self, file: FileIO, text: str) -> None:
        """Write a line; end an incomplete line (the disk was full) first."""
        data = memoryview((b"\n" if self._line_is_incomplete else b"") + text.encode())
        while data:
            data = data[file.write(data) :]
            self._line_is_incomplete = len(data) > 0


def _open(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {describe_error(error)}") from None


def _ends_without_newline(path: Path) -> bool:
    """Whether the last line of a file is incomplete."""
    try:
        with path.open("rb") as file:
            file.seek(-1, SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # empty, or a pipe
        return False
