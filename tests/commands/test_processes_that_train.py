"""Which steps of which processes and optimizers make one training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_scripts import Done

MODEL = """
import gc, os, sys, weakref
import torch
from torch import nn

def train(steps, size):
    model = nn.Linear(64, 1)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(size, 64)).square().mean()
        loss.backward()
        optimizer.step()
    return weakref.ref(model)
"""
FOLDS = """
models = [train(9, 4) for fold in range(3)]
gc.collect()
assert [model() for model in models[:-1]] == [None, None], "the agent keeps a model"
"""
FORKED = """
import torch.multiprocessing as mp

process = mp.get_context("fork").Process(target=train, args=(27, 4))
process.start()
process.join()
"""
ITSELF = """
if "AGAIN" not in os.environ:
    os.environ["AGAIN"] = "1"
    train(2, 4)
    os.execv(sys.executable, [sys.executable, *sys.argv])
train(25, 4)
"""
CLOSES = """
os.closerange(3, 256)
taken = [os.open(os.devnull, os.O_WRONLY) for _ in range(50)]
train(27, 4)
for each in taken:
    os.fstat(each)  # the agent has closed no file of the script's
"""
SCRIPTS = {
    "an optimizer for each fold": FOLDS,
    "a forked child": FORKED,
    "an end without exit handlers": "train(27, 4)\nos._exit(0)",
    "executes itself again": ITSELF,
    "closes all files": CLOSES,
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_all_steps_are_counted(rightbatch: Callable[..., Done], folder: Path, kind: str) -> None:
    (folder / "script.py").write_text(MODEL + SCRIPTS[kind])
    done = rightbatch("run", "--json", "--", sys.executable, "script.py")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["steps"], report["batch_size"], report["ranks"]) == (27, 4, 1), report


def test_trainings_of_a_command_are_not_ranks_of_one(
    rightbatch: Callable[..., Done], folder: Path
) -> None:
    (folder / "script.py").write_text(MODEL + "train(int(sys.argv[1]), int(sys.argv[2]))")
    python = f"'{sys.executable}' script.py"
    both = f"{python} 7 8 && {python} 27 4"
    done = rightbatch("run", "--json", "--", "sh", "-c", both)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["steps"], report["batch_size"], report["ranks"]) == (27, 4, 1)
    assert "2 processes of the command train" in " ".join(report["advice"])
