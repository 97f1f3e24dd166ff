"""Small training scripts for commands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

GALLERY = Path(__file__).parent / "gallery"

SMALL = """
import argparse, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--steps", type=int, default=40)
args = parser.parse_args()
torch.manual_seed(0)
data = TensorDataset(torch.randn(640, 3, 32, 32), torch.randint(0, 10, (640,)))
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(),
                      nn.Linear(32 * 28 * 28, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
steps = 0
while steps < args.steps:
    for images, labels in DataLoader(data, args.batch, shuffle=True):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps == args.steps:
            break
print("loss", repr(loss.item()))
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that run in a folder, as those of its commands do."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]
