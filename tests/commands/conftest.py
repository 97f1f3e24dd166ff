"""A way to run `rightbatch` on commands as people do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_scripts import SMALL, Done


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `small.py`."""
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rightbatch(folder: Path) -> Callable[..., Done]:
    """Runs `rightbatch` with arguments in the working folder."""

    def run(*arguments: str, stdin: str = "") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "rightbatch", *arguments],
            cwd=folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            env=os.environ | {"PYTHON": sys.executable},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
