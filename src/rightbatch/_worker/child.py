"""A process of ours that runs something of the user's, started, talked to, and ended."""

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
    """`python -m rightbatch._worker`, which is sent a header; a context manager that ends it.

    What it prints is kept for when it dies, its temporary files are deleted with it.
    """

    def __init__(self, header: Header, environment: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        # It may be killed at any moment, so its temporary files are ours to delete.
        self._folder = tempfile.TemporaryDirectory(prefix="rightbatch-", ignore_cleanup_errors=True)
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._folder.name)
        package_root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # -P: the folder where the user stands must not shadow modules of the process.
            [sys.executable, "-P", "-m", "rightbatch._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | temporary | {"PYTHONPATH": path} | dict(environment or {}),
            # Its own group: Ctrl-C is the parent's to answer, and its workers end with it.
            process_group=0 if os.name == "posix" else None,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands = cast(BinaryIO, self._process.stdin)
        self._reports = cast(BinaryIO, self._process.stdout)
        self.send_bytes(pickle.dumps(header))

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid

    def send(self, **message: Any) -> None:
        """If it died meanwhile, the next `receive` tells."""
        with suppress(BrokenPipeError):
            send(self._commands, **message)

    def send_bytes(self, data: bytes) -> None:
        """Likewise."""
        with suppress(BrokenPipeError):
            send_bytes(self._commands, data)

    def receive(self) -> dict[str, Any] | None:
        """Its next message; None once it is gone."""
        return receive(self._reports)

    def death(self) -> tuple[Outcome, Failure]:
        """The process is gone without a report: killed for memory, or crashed."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace")[-20000:]
        failure = Failure("ProcessDied", f"the process ended with status {code}", said)
        return ("killed" if died_out_of_memory(code, said) else "failed"), failure

    def kill(self) -> None:
        """End the process, and its workers with it; whoever waits for a message hears of it."""
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()

    def stop(self) -> None:
        """Kill it, and delete what it left."""
        self.kill()
        self._process.wait()
        for stream in (self._commands, self._reports, self._stderr):
            with suppress(OSError):  # a command that was never read
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
