"""Nothing of a command is left, and nothing more of it begins, when rightbatch is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_scripts import processes_of

WAITS = """
import pathlib, time
import torch
torch.nn.Linear(1, 1)
pathlib.Path("training").touch()
time.sleep(600)
"""
WRAPPER = f"""
env -i /bin/sleep 600 &
'{sys.executable}' waits.py {{batch}}
touch after
sleep 600
"""


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    assert condition()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("verb", ["fit", "study"])
def test_a_shell_does_not_go_on_after_a_kill(folder: Path, number: int, verb: str) -> None:
    (folder / "waits.py").write_text(WAITS)
    temporary = folder / "temporary"
    temporary.mkdir()
    options = ["--batches", "4,8", "--steps", "4", "--out", "out"] if verb == "study" else []
    shell = ["sh", "-c", WRAPPER + "# {seed}" * (verb == "study")]
    with subprocess.Popen(
        [sys.executable, "-m", "rightbatch", verb, *options, "--", *shell],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        wait_for(lambda: (folder / "training").exists() or process.poll() is not None)
        assert process.poll() is None, process.stdout and process.stdout.read()
        process.send_signal(number)
        assert process.wait(60) == -number
        wait_for(lambda: not processes_of(folder))
    assert not (folder / "after").exists()
    wait_for(lambda: not list(temporary.glob("r*b*-*")))  # its temporary folders
