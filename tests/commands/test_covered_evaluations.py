"""What counts as an evaluation, whose memory an answer covers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._training.trial import TrialRequest

LOOP = """
import copy, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

size = int(sys.argv[1])
data = DataLoader(TensorDataset(torch.randn(64, 9)), 16)
model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
teacher = copy.deepcopy(model).eval()

def forward(module):
    with torch.no_grad():
        return module(torch.randn(size, 9))

def evaluate():
    model.eval()
    result = forward(model)
    model.train()
    return result

def evaluate_by_loader():
    with torch.no_grad():
        return [model(x) for (x,) in data]

optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
BEFORE
for step in range(8):
    IN_STEP
    optimizer.zero_grad()
    model(torch.randn(size, 9)).square().mean().backward()
    optimizer.step()
    AFTER
"""


@pytest.mark.parametrize(
    ("before", "in_step", "after", "expected"),
    [
        ("", "", "evaluate()", True),
        ("", "", "evaluate_by_loader()", True),
        # before the first step there are neither gradients nor the optimizer's state
        ("evaluate(); evaluate_by_loader()", "", "", False),
        ("", "forward(teacher)", "", False),  # a teacher, a target network
        ("", "forward(model)", "", False),  # a policy that acts
    ],
)
def test_an_evaluation_is_of_the_trained_model_after_a_step(
    tmp_path: Path, before: str, in_step: str, after: str, expected: bool
) -> None:
    text = LOOP
    for name, code in (("BEFORE", before), ("IN_STEP", in_step), ("AFTER", after)):
        text = text.replace(name, code or "pass")
    (tmp_path / "script.py").write_text(text)
    command = rb.Command([sys.executable, str(tmp_path / "script.py"), "{batch}"])
    trial = command.trial(4, TrialRequest(3))
    assert (trial.outcome, trial.examples_per_step) == ("ok", 4), trial.failure
    assert trial.evaluated is expected
    assert any("an evaluation" in note for note in trial.notes) is not expected
