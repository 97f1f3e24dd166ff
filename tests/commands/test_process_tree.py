"""The memory of a command's processes beside its ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rightbatch.integrations.command.process_tree import ProcessTree

HELD = 64 * 2**20
HOLDS = f"""
import os, subprocess, sys
held = bytearray({HELD})
if len(sys.argv) > 1:  # the launcher of a rank
    rank = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE)
    rank.stdout.readline()
    print(os.getpid(), rank.pid, flush=True)
else:
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_the_launchers_of_ranks_are_left_out(tmp_path: Path) -> None:
    script = tmp_path / "holds.py"
    script.write_text(HOLDS)
    shell = f"'{sys.executable}' '{script}' launcher; exit"
    with subprocess.Popen(
        ["sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        launcher, rank = map(int, process.stdout.readline().split())
        with ProcessTree(process.pid, "a mark that no process has") as tree:
            assert tree.other_bytes({rank}) == 0  # the shell and the launcher are its ancestors
            assert tree.other_bytes({launcher}) >= HELD
