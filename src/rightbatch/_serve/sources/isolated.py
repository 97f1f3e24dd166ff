"""A source in a process of its own, which can be killed when it hangs.

`python -m rightbatch._serve.sources.isolated` reads the pickled source from its standard input; the
user's script is not imported again. Frames come back through a pipe, each preceded by a line of
JSON.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rightbatch._errors import UsageError
from rightbatch._serve.redaction import describe_error
from rightbatch._serve.sources.connection import Connection
from rightbatch._serve.sources.frames import DamagedFrameError, SourceSpec, Timeouts
from rightbatch._worker.wire import receive, receive_bytes, send, send_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class IsolatedSource(Connection):
    """A source that is opened and read in a child process."""

    def __init__(self, spec: SourceSpec, timeouts: Timeouts) -> None:
        super().__init__()
        self.is_live = spec.is_live
        self._sent = pickle_for_process(spec, timeouts)
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: Any = None
        self._ended = False

    def _open(self) -> None:
        package_root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            # -P: modules in the working directory must not shadow those of this process.
            [sys.executable, "-P", "-m", "rightbatch._serve.sources.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | {"PYTHONPATH": path},
            process_group=0 if os.name == "posix" else None,  # only the parent handles Ctrl-C
        )
        if self._closed:  # before there was a process to kill
            self._process.kill()
        with suppress(BrokenPipeError):
            send_bytes(cast(BinaryIO, self._process.stdin), self._sent)
        self._receive()

    def _read(self) -> tuple[NDArray[np.uint8], float] | None:
        import numpy as np

        if self._ended:
            return None
        message = self._receive()
        if message["event"] == "end":
            self._ended = True
            return None
        image = np.empty(message["shape"], np.uint8)
        missing = image.data.cast("B")
        assert self._process is not None
        frames = cast(BinaryIO, self._process.stdout)
        while missing:
            count = frames.readinto(missing)  # type: ignore[attr-defined]
            if not count:
                self._died()
            missing = missing[count:]
        return image, message["captured"]

    def _receive(self) -> dict[str, Any]:
        assert self._process is not None
        message = receive(cast(BinaryIO, self._process.stdout))
        if message is None:
            self._died()
        assert message is not None
        if message["event"] == "broken":
            raise DamagedFrameError(message["text"])
        if message["event"] == "failed":
            raise OSError(message["text"])
        return message

    def _died(self) -> None:
        assert self._process is not None
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        raise OSError(f"the source's process ended with status {code}{last}")

    def _interrupt(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _release(self) -> None:
        streams = [self._stderr]
        if self._process is not None:
            self._process.wait()
            streams += [self._process.stdin, self._process.stdout]
        for stream in filter(None, streams):
            with suppress(OSError):  # buffered data that was never read
                stream.close()


def pickle_for_process(spec: SourceSpec, timeouts: Timeouts) -> bytes:
    """Pickle a source together with `sys.path`.

    Raises:
        UsageError: if the source cannot be pickled.
    """
    import cloudpickle

    try:
        found = cloudpickle.dumps((spec, timeouts))
    except Exception as error:
        raise UsageError(
            f"{spec.name} cannot be pickled for a process of its own ({type(error).__name__}: "
            f"{error}); use isolated=False"
        ) from error
    return pickle.dumps(([path or str(Path.cwd()) for path in sys.path], found))


def main() -> None:
    """Run the source's process; it ends with its parent."""
    commands = os.fdopen(os.dup(0), "rb")
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of decoders must not mix with frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    paths, found = pickle.loads(receive_bytes(commands))
    threading.Thread(target=_end_with, args=(commands,), daemon=True, name="parent").start()
    sys.path[:] = paths
    try:
        spec, timeouts = pickle.loads(found)
        source = spec.make(timeouts)
        source.open()
        send(reports, event="opened")
        while True:
            try:
                got = source.read()
            except DamagedFrameError as error:
                send(reports, event="broken", text=describe_error(error))
                continue
            if got is None:
                break
            image, captured = got
            send(reports, event="frame", shape=image.shape, captured=captured)
            reports.write(image.data.cast("B"))
            reports.flush()
        source.close()
        send(reports, event="end")
    except BrokenPipeError:
        pass
    except Exception as error:
        send(reports, event="failed", text=describe_error(error))


def _end_with(parent: BinaryIO) -> None:
    """Exit when the parent does: it sends nothing more, so the read ends with it."""
    parent.read()
    os._exit(0)


if __name__ == "__main__":
    main()
