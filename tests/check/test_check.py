"""`check`: budgets, planted changes that it has to name, and changes that it must not mind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._check.budget import Budget, Change, read_budget
from rightbatch._predict.follow import Follower
from rightbatch._predict.variant import Variant

MIB = 2**20
WIDTH = 64


def layers(*more: nn.Module, width: int = WIDTH, count: int = 4) -> nn.Sequential:
    blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(count)]
    return nn.Sequential(nn.Linear(16, width), *blocks, *more, nn.Linear(width, 1))


def workload(model: nn.Module, **fields: Any) -> rb.Workload:
    given: dict[str, Any] = {
        "loss": lambda model, batch: model(batch).square().mean(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "data": [torch.rand(16) for _ in range(200)],
    }
    return rb.Workload(model=model, **(given | fields))


def modules(make: Callable[[], nn.Module]) -> dict[str, int]:
    """What `check` keeps of a model, without a process for each."""
    follower = Follower(lambda: workload(make()))
    return follower.traces([8], Variant(capability=8.0))[0].by_module()


def changed(make: Callable[[], nn.Module]) -> tuple[Change, ...]:
    before = Budget(8, None, 24 * 2**30, False, 1, modules(layers))
    return before.changed(modules(make))


class Widened(nn.Sequential):
    """Its second block keeps four times as much, without more parameters."""

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self):
            x = layer(x.repeat(1, 1))
            if number == 2:
                x = layer[1](layer[1](x))
        return x


PLANTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a layer": (lambda: layers(nn.Linear(WIDTH, WIDTH)), "6"),
    "a block": (lambda: layers(count=5), "5.0"),
    "a norm": (lambda: layers(nn.BatchNorm1d(WIDTH)), "5"),
    "a wide layer in a block": (
        lambda: _with("2", nn.Sequential(nn.Linear(WIDTH, 999), nn.Linear(999, WIDTH))),
        "2.0",
    ),
    "a dropout": (lambda: _with("3", nn.Sequential(nn.Linear(64, 64), nn.Dropout())), "3.1"),
    "an adapter": (lambda: _with("4", _Adapted()), "4.up"),
    "an embedding": (lambda: layers(_Table()), "5.table"),
    "attention": (lambda: layers(_Attention()), "5.attention"),
    "a head that is larger": (lambda: _with("5", nn.Linear(WIDTH, 500)), "5"),
    "a first layer with two parts": (lambda: _with("0", _Doubled()), "0.second"),
}

NEUTRAL: dict[str, Callable[[], nn.Module]] = {
    "nothing": layers,
    "other weights": lambda: _initialized(layers()),
    "frozen and thawed": lambda: layers().requires_grad_(False).requires_grad_(True),
    "in evaluation mode": lambda: layers().eval(),
    "moved": lambda: layers().to("cpu"),
    "a hook": lambda: _hooked(layers()),
    "an attribute": lambda: _named(layers()),
    "an identity": lambda: _with("2", nn.Sequential(*layers()[2], nn.Identity())),
    "a checkpoint that is loaded": lambda: _loaded(layers()),
    "a function around": lambda: (lambda: layers())(),
}


def _with(name: str, module: nn.Module) -> nn.Module:
    model = layers()
    setattr(model, name, module)
    return model


class _Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.act = nn.Linear(WIDTH, WIDTH), nn.Tanh()
        self.down, self.up = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.base(x)) + self.up(self.down(x))
        return out


class _Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.table(torch.zeros(len(x), dtype=torch.long))
        return out


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class _Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, WIDTH), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x) + self.second(x)
        return out


def _initialized(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def _hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda *_: None)
    return model


def _named(model: nn.Module) -> nn.Module:
    model.remark = "of no size"  # type: ignore[assignment]
    return model


def _loaded(model: nn.Module) -> nn.Module:
    model.load_state_dict(layers().state_dict())
    return model


@pytest.mark.parametrize("kind", PLANTED)
def test_a_change_that_needs_memory_is_named(kind: str) -> None:
    make, name = PLANTED[kind]
    found = changed(make)
    assert name in [change.module for change in found if change.bytes > 0]


@pytest.mark.parametrize("kind", NEUTRAL)
def test_a_change_that_needs_none_is_not(kind: str) -> None:
    assert changed(NEUTRAL[kind]) == ()


SCRIPT = """
import torch, rightbatch as rb
from torch import nn

def made(*more, **fields):
    model = nn.Sequential(nn.Linear(16, 512), *more, nn.Linear(512, 1))
    data = [torch.rand(16) for _ in range(2000)]
    loss = lambda model, batch: model(batch).square().mean()
    return rb.Workload(model, loss, torch.optim.AdamW(model.parameters()), data, **fields)

def workload():
    return made(nn.Linear(512, 512))

def larger():
    return made(nn.Linear(512, 512), nn.Linear(512, 512))

def broken():
    return made(nn.Linear(5, 5))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    (folder / "train.py").write_text(SCRIPT)
    return folder


def check(folder: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "rightbatch", "check", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def budget(folder: Path) -> Path:
    gpu = ("--batch", "256", "--gpu", "RTX 4090")
    code, out, err = check(folder, "train.py:workload", *gpu, "--write", "memory.json")
    assert code == 0, err
    assert out.startswith("within the budget: batch size 256 allocates")
    return folder / "memory.json"


def test_a_budget_is_a_file_that_can_be_read_and_compared(budget: Path) -> None:
    stored = read_budget(budget)
    weights = 4 * (512 * 512 + 512)
    activations = 4 * 256 * 512
    assert stored.modules["1"] == weights + activations
    assert (stored.batch_size, stored.gpu, stored.inference) == (256, "RTX 4090", False)
    prediction = rb.predict(f"{budget.parent}/train.py:workload", batch=256, remedies=False)
    assert stored.peak_bytes == prediction.allocated_peak_bytes
    assert len(budget.read_text().splitlines()) > len(stored.modules)


def test_the_same_step_is_within_its_budget(folder: Path, budget: Path) -> None:
    code, out, err = check(folder, "train.py:workload", "--against", "memory.json", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["changed"] == []
    assert document["fits"] and document["within_budget"]
    assert document["peak_bytes"] == document["budget_bytes"] == read_budget(budget).peak_bytes
    assert document["largest_batch_size"] == 2000


def test_a_step_that_has_grown_ends_with_1_and_the_modules_names(
    folder: Path, budget: Path
) -> None:
    code, out, _ = check(folder, "train.py:larger", "--against", "memory.json")
    assert code == 1
    assert out.startswith("over the budget: batch size 256 allocates")
    assert "+1.50 MiB  2" in out
    code, out, _ = check(folder, "train.py:larger", "--against", "memory.json", "--markdown")
    assert code == 1
    assert out.startswith("**Memory: over the budget.**") and "| `2` | +1.50 MiB |" in out
    loose = ("--against", "memory.json", "--tolerance", "0.9")
    assert check(folder, "train.py:larger", *loose)[0] == 0


def test_a_step_that_does_not_fit_ends_with_1(folder: Path) -> None:
    few = ("--batch", "256", "--memory", "400MiB")
    code, out, _ = check(folder, "train.py:workload", *few, "--json")
    document = json.loads(out)
    assert code == 1
    assert not document["fits"] and document["largest_batch_size"] is None
    assert document["budget_bytes"] == 400 * MIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.py:workload",), "check takes --batch N and a GPU"),
        (("train.py:workload", "--against", "none.json"), "No such file"),
        (("train.py:workload", "--against", "train.py"), "is no budget"),
        (("train.py:workload", "--against", "memory.json", "--batch", "8"), "budget is for batch"),
        (("train.py:workload", "--against", "memory.json", "--gpu", "T4"), "budget is for gpu"),
        (("train.py:workload", "--against", "memory.json", "--tolerance", "2"), "from 0 to 1"),
        (("train.py:workload", "--batch", "8", "--gpu", "all"), "for one GPU"),
        (
            ("--batch", "8", "--memory", "1GiB", "--", "python", "train.py", "{batch}"),
            "a step that can be followed",
        ),
    ],
)
def test_wrong_use_is_refused_with_the_remedy(
    folder: Path, budget: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = check(folder, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_broken_workload_exits_with_3(folder: Path) -> None:
    code, _, err = check(folder, "train.py:broken", "--batch", "8", "--memory", "1GiB")
    assert code == 3
    assert "mat1 and mat2" in err
