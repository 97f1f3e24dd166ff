"""Commands that cannot be started or measured are refused by their reason."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_scripts import Done

import rightbatch as rb
from rightbatch._errors import UsageError
from rightbatch._training.trial import TrialRequest
from rightbatch.integrations.command.launch import without_agent

Rightbatch = Callable[..., Done]


@pytest.mark.skipif(os.name != "posix", reason="the first line of a script")
@pytest.mark.parametrize(
    ("line", "message"),
    [("", "did you mean `sh ./run.sh`"), ("#!/no/such/sh\n", "interpreter in its first line")],
)
@pytest.mark.parametrize("verb", ["fit", "run"])
def test_a_script_that_the_system_cannot_run(
    rightbatch: Rightbatch, folder: Path, line: str, message: str, verb: str
) -> None:
    (folder / "run.sh").write_text(f"{line}echo $1\n")
    (folder / "run.sh").chmod(0o755)
    done = rightbatch(verb, "--", "./run.sh", "{batch}" if verb == "fit" else "8")
    assert done.code == 2 and message in done.err, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["python", "-X", "dev", "-I", "train.py"], "option -I keeps the agent out"),
        (["python", "-u", "-sE", "train.py"], "option -sE keeps the agent out"),
        (["env", "PYTHONPATH=src", "python", "train.py"], "PYTHONPATH, which the command replaces"),
        (["sh", "-c", "PYTHONPATH=. python train.py"], "PYTHONPATH, which the command replaces"),
        (["python", "-u", "-", "8"], "its standard input is empty"),
        (["python", "train.py", "-S", "-"], "no Python process of it has imported torch"),
        (["python", "-X", "-I", "train.py"], "no Python process of it has imported torch"),
        (["./train"], "no Python process of it has imported torch"),
    ],
)
def test_why_no_agent_has_reported(command: list[str], message: str) -> None:
    assert message in without_agent(command, has_input=False)


IGNORES = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for (x,) in DataLoader(TensorDataset(torch.randn(40, 8)), 4):
    model(x).square().mean().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_a_command_that_does_not_use_its_batch(rightbatch: Rightbatch, folder: Path) -> None:
    (folder / "script.py").write_text(IGNORES)
    done = rightbatch("fit", "--", sys.executable, "script.py", "{batch}")
    assert done.code == 2, done.err
    assert "does not use {batch}" in done.err and "4 examples" in done.err


ACCUMULATES = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

size = int(sys.argv[1])
accumulate = max(16 // size, 1)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(4):
    for i, (x,) in enumerate(DataLoader(TensorDataset(torch.randn(48, 8)), size)):
        model(x).square().mean().backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.slow
def test_a_command_that_accumulates_to_a_fixed_size_is_measured_up_to_its_data(
    rightbatch: Rightbatch, folder: Path
) -> None:
    (folder / "script.py").write_text(ACCUMULATES)
    done = rightbatch("fit", "--json", "--", sys.executable, "script.py", "{batch}")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["batch_size"], document["argument"]) == (48, 48)


def test_a_program_that_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = rb.Command([str(program), "{batch}"])
    program.unlink()
    with pytest.raises(UsageError, match="cannot be started"):
        command.trial(2, TrialRequest(2))
