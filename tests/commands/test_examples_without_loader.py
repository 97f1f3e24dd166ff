"""Examples of a step where no loader tells how many there are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._training.trial import TrialRequest

LOOP = """
import sys
import torch
from torch import fx, nn

size = int(sys.argv[1])
model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
BEFORE
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(8):
    optimizer.zero_grad()
    STEP
    loss.backward()
    optimizer.step()
"""
STEP = "loss = model(torch.randn(size, 9)).square().mean()"
ONE_BY_ONE = "loss = sum(model(torch.randn(1, 9)).square().mean() for _ in range(5 * size))"


@pytest.mark.parametrize(
    ("before", "step", "expected"),
    [
        ("model(torch.zeros(24, 9))  # a dummy forward pass", STEP, 6),
        # torch.fx calls modules with proxies, torch.export with symbols
        ("model = fx.symbolic_trace(nn.Sequential(model))", STEP, 6),
        (
            "x = torch.zeros(4, 9)\n"
            "torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('n')},))",
            STEP,
            6,
        ),
        ("", ONE_BY_ONE, None),  # a policy: how many examples that are cannot be known
        ("", f"{STEP} + model(torch.randn(size, 9)).mean()", 6),  # two views of the same examples
    ],
)
def test_examples_are_those_of_the_input_or_unknown(
    tmp_path: Path, before: str, step: str, expected: int | None
) -> None:
    text = LOOP.replace("BEFORE", before).replace("STEP", step)
    (tmp_path / "script.py").write_text(text)
    command = rb.Command([sys.executable, str(tmp_path / "script.py"), "{batch}"])
    trial = command.trial(6, TrialRequest(4))
    assert (trial.outcome, trial.examples_per_step) == ("ok", expected), trial.failure
    assert trial.largest_argument is None
    notes = " ".join(trial.notes)
    assert ("the size of its batches was not seen" in notes) is (expected is None)
