"""Examples of a step where a loader runs ahead of the backward passes, and what they need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._training.protocol import Training
from rightbatch._training.resolve import resolve
from rightbatch._training.trial import TrialRequest
from rightbatch._training.watched import WatchRequest

AHEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def one_ahead(loader):  # as Accelerate does, to know which batch is the last one
    batches = iter(loader)
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following
    yield batch

torch.manual_seed(0)
data = TensorDataset(torch.randn(48, 64))
model = nn.Linear(64, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(4):
    for number, (x,) in enumerate(one_ahead(DataLoader(data, 24))):
        model(x).square().mean().backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
"""

TWO_LOSSES = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 64))
example = next(iter(DataLoader(data, 8)))  # of a loader that is not used again
model = nn.Linear(64, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for (x,) in DataLoader(data, 8):
    model(x).square().mean().backward()
    model(torch.randn_like(x)).square().mean().backward()  # on no batch of its own
    optimizer.step()
    optimizer.zero_grad()
"""

OWN_PARTS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for (x,) in DataLoader(TensorDataset(torch.randn(144, 64)), 24):
    for part in x.split(8):
        model(part).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""

TERMS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Linear(64, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for (x,) in DataLoader(TensorDataset(torch.randn(64, 64)), 8):
    y = model(x)
    y.square().mean().backward(retain_graph=True)
    y.abs().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""

TURNS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 16))
real, fake = nn.Linear(16, 1), nn.Linear(4, 16)
optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (real, fake)]
for (x,) in DataLoader(data, %d):
    for optimizer in optimizers:
        optimizer.zero_grad()
    (real(x).mean() - real(fake(torch.randn(len(x), 4)).detach()).mean()).backward()
    optimizers[0].step()
    real(fake(torch.randn(len(x), 4))).mean().backward()
    optimizers[1].step()
"""

TIME_FIRST = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(50, 8), nn.GRU(8, 8)
    def forward(self, tokens):
        return self.rnn(self.embedding(tokens))[0]

model = Model()
for step in range(%d):  # without an optimizer
    model(torch.randint(50, (35, 6))).square().mean().backward()
    for parameter in model.parameters():
        parameter.data.add_(parameter.grad, alpha=-0.1)
        parameter.grad = None
"""

LARGE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(256, 1024))
model = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 65536), nn.ReLU())
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
for (x,) in DataLoader(data, 16):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
"""


def training(folder: Path, script: str) -> Training:
    (folder / "script.py").write_text(script)
    return resolve(rb.Command([sys.executable, str(folder / "script.py")]))


@pytest.mark.parametrize(
    ("script", "examples", "parts"),
    [
        pytest.param(AHEAD, 48, 2, id="ahead"),
        pytest.param(TWO_LOSSES, 8, 1, id="two losses"),
        pytest.param(TERMS, 8, 1, id="terms of a loss"),
        pytest.param(OWN_PARTS, 24, 3, id="parts by the loop"),
    ],
)
def test_a_step_has_the_examples_of_its_backward_passes(
    tmp_path: Path, script: str, examples: int, parts: int
) -> None:
    watched = training(tmp_path, script).watch(WatchRequest())
    assert (watched.batch_size, watched.micro_batches) == (examples, parts)


@pytest.mark.parametrize("examples", [50, 64])
def test_a_gan_whose_data_end_in_its_first_periods(tmp_path: Path, examples: int) -> None:
    watched = training(tmp_path, TURNS % examples).watch(WatchRequest())
    assert (watched.batch_size, watched.steps) == (examples, 1)  # of 50 and 14, or of 64


def test_a_script_that_asks_whether_torch_exists_is_observed(tmp_path: Path) -> None:
    asks = 'import importlib.util\nassert importlib.util.find_spec("torch")\n' * 2
    watched = training(tmp_path, asks + TIME_FIRST % 5).watch(WatchRequest())
    assert watched.steps == 5


@pytest.mark.parametrize("steps", [3, 9])
def test_steps_without_an_optimizer_and_with_time_first(tmp_path: Path, steps: int) -> None:
    watched = training(tmp_path, TIME_FIRST % steps).watch(WatchRequest())
    assert (watched.batch_size, watched.steps) == (6, steps)


def test_a_size_without_a_step_is_refused_with_the_largest_that_has_one(tmp_path: Path) -> None:
    script = "import sys\nsize = int(sys.argv[1])\n" + TIME_FIRST.replace("35, 6", "35, size")
    (tmp_path / "script.py").write_text(script.replace("%d", "6 if size < 40 else 0"))
    command = rb.Command([sys.executable, str(tmp_path / "script.py"), "{batch}"])
    assert command.trial(4, TrialRequest(2)).examples_per_step == 4
    with pytest.raises(rb.UsageError, match="--max-batch 4 tries nothing larger"):
        command.trial(64, TrialRequest(2))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc tells what is in use")
def test_memory_in_use_shows_what_an_example_needs(tmp_path: Path) -> None:
    live = training(tmp_path, LARGE).watch(WatchRequest()).live
    assert live is not None and live.examples == 16
    # The output of the last layer, that of its activation, and a gradient of either: 16 bytes for
    # each of 65,536 features; with buffers of the operators at most twice that.
    needed = 16 * 65536
    without = live.fixed - live.gradients
    assert needed <= (live.peak - without) / live.examples <= 2 * needed
    # Weights, gradients and two averages of Adam; the gradients are freed before the forward pass.
    weights = 4 * (64 * 65536 + 65536 + 1024 * 64 + 64)
    assert live.gradients == weights
    assert 4 * weights <= live.fixed <= 5 * weights
