"""A worker process: started, sent messages, and ended."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from rightbatch._device.out_of_memory import died_out_of_memory
from rightbatch._worker.failure import Failure, Outcome
from rightbatch._worker.wire import Header, receive, send, send_bytes


class Child:
    """Starts `python -m rightbatch._worker` and sends it a header; a context manager that ends it.

    Its stderr is kept for the report of a crash; its temporary files are deleted at the end.
    """

    def __init__(self, header: Header, environment: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        # It may be killed at any moment, so this process deletes its temporary files.
        self._folder = tempfile.TemporaryDirectory(prefix="rightbatch-", ignore_cleanup_errors=True)
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._folder.name)
        package_root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # -P: the working directory must not shadow modules of the process.
            [sys.executable, "-P", "-m", "rightbatch._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | temporary | {"PYTHONPATH": path} | dict(environment or {}),
            # Its own process group: the parent handles Ctrl-C, and kills loader workers with it.
            process_group=0 if os.name == "posix" else None,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands = cast(BinaryIO, self._process.stdin)
        self._reports = cast(BinaryIO, self._process.stdout)
        self.send_bytes(pickle.dumps(header))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, **message: Any) -> None:
        """Send a message; if the process has died, the next `receive` returns None."""
        with suppress(BrokenPipeError):
            send(self._commands, **message)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes; if the process has died, the next `receive` returns None."""
        with suppress(BrokenPipeError):
            send_bytes(self._commands, data)

    def receive(self) -> dict[str, Any] | None:
        """Return the next message; None if the process has ended."""
        return receive(self._reports)

    def death(self) -> tuple[Outcome, Failure]:
        """Return how the process ended without a report: `killed` for memory, or `failed`."""
        code = self._process.wait()
        self._stderr.seek(0)
        stderr = self._stderr.read().decode(errors="replace")[-20000:]
        failure = Failure("ProcessDied", f"the process ended with status {code}", stderr)
        return ("killed" if died_out_of_memory(code, stderr) else "failed"), failure

    def kill(self) -> None:
        """Kill the process and its loader workers; a waiting `receive` returns None."""
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()

    def stop(self) -> None:
        """Kill the process, and delete its temporary files."""
        self.kill()
        self._process.wait()
        for stream in (self._commands, self._reports, self._stderr):
            with suppress(OSError):  # a command was never read
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
