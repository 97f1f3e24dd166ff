"""Forks that follow in parallel, when the process that forked is gone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PATIENCE = 120.0

SCRIPT = """
import os, sys, time
from pathlib import Path
from rightbatch._predict import forked_traces

folder = Path(sys.argv[1])
os.sched_getaffinity = lambda pid: {0, 1}

def answer(task):
    (folder / f"{task}.part").write_text(str(os.getpid()))
    (folder / f"{task}.part").rename(folder / f"{task}.pid")
    while not (folder / "go").exists():
        time.sleep(0.01)
    return {"found": bytes(10_000_000)}  # more than a pipe takes

forked_traces._in_forks(answer, ["one", "two"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only")
def test_forks_end_when_nobody_waits_for_their_traces(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    files = [tmp_path / "one.pid", tmp_path / "two.pid"]
    give_up = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert parent.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)
    forks = [psutil.Process(int(file.read_text())) for file in files]
    parent.kill()
    parent.wait()
    (tmp_path / "go").touch()
    _, left = psutil.wait_procs(forks, timeout=PATIENCE)
    for fork in left:
        fork.kill()
    assert not left
