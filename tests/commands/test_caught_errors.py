"""Scripts that catch running out of memory themselves, and skip the batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._training.trial import TrialRequest

SKIPS = """
import sys
import torch
from torch import nn

size, place = int(sys.argv[1]), sys.argv[2]

class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        if place == "forward" and len(x) > 4 and step % 2:  # only sometimes
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        if place == "backward" and len(gradient) > 4 and step % 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 64 bytes")
        return gradient

class Inner(nn.Module):
    def forward(self, x):
        return Fails.apply(x)

model = nn.Sequential(nn.Linear(8, 8), Inner(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(40):
    try:
        model(torch.randn(size, 8)).square().mean().backward()
    except RuntimeError as error:
        assert "memory" in str(error)
        print("ran out of memory, skipping the batch")
        optimizer.zero_grad()
        continue
    try:
        model(torch.randn(3))  # an error of another kind, which is caught as well
    except RuntimeError:
        pass
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_size_at_which_a_script_skips_batches_does_not_survive(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "script.py").write_text(SKIPS)
    command = rb.Command([sys.executable, str(tmp_path / "script.py"), "{batch}", place])
    assert command.trial(4, TrialRequest(6)).outcome == "ok"
    assert command.trial(8, TrialRequest(6)).outcome == "out_of_memory"
