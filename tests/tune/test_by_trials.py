"""`tune` of commands: what it makes of their trials, and the whole with a script that is run."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb
from rightbatch._training.protocol import Ability, Training
from rightbatch._training.trial import Trial, TrialRequest
from rightbatch._training.watched import SampledUpdate, Watched

MIB = 2**20
EXAMPLES = 4096
PARTS, PART = 8, 4  # of the sampled batches

SCRIPT = """
import argparse, os, torch
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int)
parser.add_argument("--lr", type=float, default=0.05)
args = parser.parse_args()
torch.manual_seed(0)
x = torch.randn(2048, 64)
y = (x[:, :10] + torch.randn(2048, 10)).argmax(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
while True:
    for inputs, labels in DataLoader(TensorDataset(x, y), args.batch, shuffle=True):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


class Scripted(Training):
    """A command whose trials have known times and gradients, of `factor` examples per `{batch}`."""

    integration = "a command"
    abilities = frozenset({Ability.TRIAL})

    def __init__(
        self, *, start: float, each: float, noise: float, factor: int = 1, fits: int = 1024
    ) -> None:
        self.start, self.each, self.noise, self.factor = start, each, noise, factor
        self.fits = fits
        self.asked: list[int | None] = []
        self.limits: set[int | None] = set()
        self.random = random.Random(0)

    def seconds(self, size: int) -> float:
        return self.start + self.each * size

    def trial(self, argument: int, request: TrialRequest) -> Trial:
        self.asked.append(request.steps)
        if request.steps is not None:
            self.limits.add(request.memory)
        size = argument * self.factor
        steps = request.steps or 400
        seconds = [self.seconds(size) * self.random.uniform(0.99, 1.01) for _ in range(steps)]
        is_ok = argument <= self.fits
        charge = MIB * (100 + argument)
        return Trial(
            argument=argument,
            outcome="ok" if is_ok else "out_of_memory",
            seconds=5 + sum(seconds),
            charges=(charge,) * steps if is_ok else (),
            peak_bytes=charge if is_ok else None,
            step_seconds=tuple(seconds),
            waited_seconds=(0.0,) * steps,
            examples_per_step=self.examples(argument),
            limit_bytes=MIB * (100 + self.fits) * 2,
            ceiling_bytes=MIB * (100 + self.fits),
            examples=EXAMPLES,
            largest_argument=EXAMPLES // self.factor,
            watched=self.watched(size, seconds) if request.steps is None else None,
        )

    def examples(self, argument: int) -> int:
        return argument * self.factor

    def watched(self, size: int, seconds: list[float]) -> Watched:
        losses = tuple((step, 2.0 * 0.99**step) for step in range(len(seconds)))
        return Watched(
            batch_size=size, micro_batches=1, ranks=1, steps=len(seconds),
            step_seconds=tuple(seconds), waited_seconds=(0.0,) * len(seconds), losses=losses,
            device="cpu", peak_bytes=None, limit_bytes=None, fixed_bytes=None,
            updates=tuple(self.update(10 * n) for n in range(40)), learning_rate=0.1,
        )  # fmt: skip

    def update(self, number: int) -> SampledUpdate:
        """|G|² is 1 and tr(Σ) the noise scale, with 5% of variation."""
        gradient = self.random.uniform(0.95, 1.05)
        part = gradient + self.noise / PART
        whole = PARTS**2 * gradient + PARTS * self.noise / PART
        return SampledUpdate(whole, ((part, PART),) * PARTS, update=number, of_layers=True)

    def command_line(self, values: Mapping[str, object]) -> str | None:
        return f"train {values['batch']} {values['learning_rate']}"


def tuned(training: Training, **options: Any) -> rb.Plan:
    return rb.tune(training, **{"budget": 600, "progress": False} | options)


@pytest.mark.parametrize(
    ("start", "each", "noise"),
    [(0.05, 0.001, 400.0), (0.2, 0.0005, 3000.0), (0.001, 0.01, 50.0)],
    ids=["balanced", "large batches pay", "compute bound"],
)
def test_the_chosen_size_is_that_of_brute_force(start: float, each: float, noise: float) -> None:
    training = Scripted(start=start, each=each, noise=noise)
    plan = tuned(training)
    assert plan.noise_scale.value == pytest.approx(noise, rel=0.05)

    def relative(size: int) -> float:
        return (1 + size / noise) * training.seconds(size) / size

    best = min((2**n for n in range(11)), key=relative)
    # a smaller size is preferred if it may be as fast
    assert relative(plan.batch_size) <= 1.03 * relative(best)
    for each_size in plan.expected:
        expected = relative(each_size.batch_size) / relative(plan.batch_size)
        assert each_size.relative_time == pytest.approx(expected, rel=0.2)
        assert each_size.accumulation == 1
    assert plan.largest.argument is not None
    assert 0.97 * 1024 <= plan.largest.argument <= 1024


def test_the_command_has_the_argument_and_the_scaled_rate() -> None:
    # two ranks, or two micro-batches: each {batch} is two examples of a step
    training = Scripted(start=0.2, each=0.0001, noise=3000.0, factor=2, fits=256)
    plan = tuned(training, base_batch=32)
    assert plan.base_batch == 32
    assert plan.largest.argument is not None
    assert plan.largest.batch_size == 2 * plan.largest.argument
    rate = 0.1 * plan.learning_rate_factor
    assert plan.command == f"train {plan.batch_size // 2} {rate:.4g}"
    assert all(each.batch_size % 2 == 0 for each in plan.expected)
    assert str(plan).endswith(f"run: {plan.command}")
    assert plan.noise_scale.notes == ("of the linear, convolution and embedding layers",)


def test_every_trial_that_is_timed_has_the_limit() -> None:
    training = Scripted(start=0.05, each=0.001, noise=400.0)
    training.limits.clear()
    tuned(training, memory="2GiB")
    assert training.limits - {2 * (100 + 1024) * MIB} == {2 * 1024 * MIB}


def test_the_target_is_reached_at_the_smoothed_loss() -> None:
    training = Scripted(start=0.05, each=0.001, noise=400.0)
    plan = tuned(training, target="loss=0.5")
    assert all(each.seconds is not None for each in plan.expected)
    assert "has not reached" not in str(plan)


def test_a_step_that_does_not_follow_the_argument_is_refused_with_the_sizes() -> None:
    class Fixed(Scripted):
        def examples(self, argument: int) -> int:
            return max(64, argument)  # as Ultralytics, which accumulates to 64

    with pytest.raises(rb.UsageError, match=r"do not follow \{batch\}: 64 at 1, .*nbs"):
        tuned(Fixed(start=0.05, each=0.001, noise=400.0))


def test_a_command_without_a_noise_scale_is_refused_with_the_reason() -> None:
    class Unknown(Scripted):
        def watched(self, size: int, seconds: list[float]) -> Watched:
            from dataclasses import replace

            seen = super().watched(size, seconds)
            return replace(seen, updates=(), no_noise="the model is compiled")

    with pytest.raises(rb.UsageError, match=r"unknown: the model is compiled.*rightbatch study"):
        tuned(Unknown(start=0.05, each=0.001, noise=400.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "accuracy=0.9"}, "only the training loss"),
        ({"verify": True}, "leave --verify out"),
        ({"device": "cpu"}, "chooses its own device"),
        ({"processes": 2}, "torchrun"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_command_cannot_have_is_refused_before_it_runs(
    options: dict[str, Any], said: str
) -> None:
    training = Scripted(start=0.05, each=0.001, noise=400.0)
    with pytest.raises(rb.UsageError, match=said):
        tuned(training, **options)
    assert training.asked == []


@pytest.mark.slow
def test_a_script_is_tuned_unchanged(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["script.py", "--batch", "{batch}", "--lr", "{learning_rate}"]
    options = ["--budget", "10s", "--max-batch", "4", "--base-batch", "4", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rightbatch", "tune", *options, "--", sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    import json

    plan = json.loads(done.stdout)
    assert plan["batch_size"] <= 4
    assert plan["base_batch"] == 4
    assert plan["noise_scale"]["steps"] >= 2
    assert plan["steps_per_epoch"] == 2048 // plan["batch_size"]
    assert f"--batch {plan['batch_size']}" in plan["command"]
    rate = 0.05 * plan["learning_rate_factor"]
    assert f"--lr {rate:.4g}" in plan["command"], "its own default, scaled"
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
