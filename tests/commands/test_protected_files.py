"""Files of the user's, and those of trials."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._errors import UsageError
from rightbatch._training.trial import TrialRequest

LOOP = """
import json, logging, os, shutil, sqlite3, sys, tempfile
from pathlib import Path
import torch
from torch import nn
ACTION
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(8):
    model(torch.randn(int(sys.argv[1]), 8)).square().mean().backward()
    optimizer.step()
"""
OWN_FILES = """
logging.basicConfig(filename="train.log", filemode="w", force=True)
if os.path.exists("runs"):
    shutil.rmtree("runs")
os.mkdir("runs")
Path("runs/config.json").write_text("{}")
Path("state.tmp").write_text("new")
os.replace("state.tmp", "state.json")
torch.save({}, "last.pt")
with sqlite3.connect("results.db") as results:
    results.execute("create table if not exists runs (name)")
    results.execute("insert into runs values ('a run')")
"""
CHANGES = {
    "a database": "sqlite3.connect('mine').execute('insert into runs values (1)')",
    "its URI": "sqlite3.connect('file:mine?mode=rw', uri=True).execute('drop table runs')",
    "safetensors": "from safetensors.torch import save_file; save_file({}, 'mine')",
    "a script's file": "torch.jit.save(torch.jit.script(nn.Linear(1, 1)), 'mine')",
    "a symbolic link": "os.remove('mine') if os.path.exists('mine') else os.symlink('x', 'mine')",
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rb.Command:
    """A script in the working folder, which has the file `mine`, a database."""
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("mine") as database:
        database.execute("create table runs (name)")
    database.close()
    return rb.Command([sys.executable, "script.py", "{batch}"])


def write(action: str) -> None:
    """Write the script, which does this before it trains."""
    Path("script.py").write_text(LOOP.replace("ACTION", action))


def test_a_trial_may_write_again_what_an_earlier_one_has_made(command: rb.Command) -> None:
    write(OWN_FILES)
    for size in (2, 4, 6):
        assert command.trial(size, TrialRequest(2)).outcome == "ok"
    # what the user has changed since is the user's
    Path("runs/config.json").write_text("edited")
    with pytest.raises(UsageError, match=r"runs.config\.json, which existed before"):
        command.trial(2, TrialRequest(2))
    assert Path("runs/config.json").read_text() == "edited"
    with pytest.raises(UsageError, match=r"existed before"):  # of another search
        rb.Command(command.template.arguments).trial(2, TrialRequest(2))


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_native_code_writes_is_not_changed(command: rb.Command, kind: str) -> None:
    before = Path("mine").read_bytes()
    write(CHANGES[kind])
    with pytest.raises(UsageError, match="mine, which existed before"):
        command.trial(2, TrialRequest(2))
    assert Path("mine").read_bytes() == before


def test_a_temporary_file_without_a_name_changes_no_folder(command: rb.Command) -> None:
    write("tempfile.TemporaryFile(dir='.').write(b'1'); tempfile.TemporaryFile().write(b'2')")
    assert command.trial(2, TrialRequest(2)).outcome == "ok"


def test_a_database_may_be_read(command: rb.Command) -> None:
    write("assert sqlite3.connect('mine').execute('select count(*) from runs').fetchone() == (0,)")
    assert command.trial(2, TrialRequest(2)).outcome == "ok"
