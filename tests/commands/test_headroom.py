"""What a report says of a watched run: sizes that would fit, noise scale, advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch._run.headroom import headroom
from rightbatch._run.report import report_of
from rightbatch._training.sampled_noise import noise_scale
from rightbatch._training.watched import LiveBytes, SampledUpdate, Watched

MIB = 2**20
GIB = 2**30


def watched(**changes: Any) -> Watched:
    plain = Watched(
        batch_size=32,
        micro_batches=1,
        ranks=1,
        steps=100,
        step_seconds=(0.2,) * 100,
        waited_seconds=(0.05,) * 100,
        losses=((0, 1.0),),
        device="cuda:0",
        peak_bytes=9 * GIB,
        limit_bytes=24 * GIB,
        fixed_bytes=1 * GIB,
    )
    return replace(plain, **changes)


def test_memory_is_linear_in_the_batch() -> None:
    found = headroom(watched(), margin=0.0)  # (24 - 1) / (9 - 1) * 32
    assert found.low is not None and found.high is not None
    assert found.low <= 92 <= found.high
    assert found.high - found.low <= 0.15 * 92
    less = headroom(watched(), margin=0.0, memory=12 * GIB)
    assert less.low is not None and less.high is not None
    assert less.low <= 44 <= less.high


def test_accumulation_and_ranks_multiply_what_fits() -> None:
    found = headroom(watched(batch_size=256, micro_batches=4, ranks=2), margin=0.0)
    assert found.low is not None and found.low % 8 == 0
    assert found.low <= 8 * 92 <= (found.high or 0)


def test_memory_in_use_on_the_cpu_needs_no_large_batch() -> None:
    # 10 MiB for an example and 100 MiB for none, in a process that holds 80 MiB besides
    live = LiveBytes(examples=8, fixed=100 * MIB, peak=180 * MIB)
    changes = {"batch_size": 8, "device": "cpu", "peak_bytes": 260 * MIB, "live": live}
    found = headroom(watched(**changes), margin=0.0, memory=2 * GIB)
    assert found.low is not None and found.high is not None
    # fit found that malloc holds 13 to 25% of the room for examples at this limit
    assert found.low <= 0.75 * 194.8 < 0.87 * 194.8 <= found.high < 194.8
    parts = {"batch_size": 64, "micro_batches": 4, "ranks": 2}
    two = LiveBytes(examples=8, fixed=200 * MIB, peak=360 * MIB)
    both = headroom(watched(**changes | parts | {"live": two}), margin=0.0, memory=4 * GIB)
    assert (both.low, both.high) == (8 * found.low, 8 * found.high)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"live": LiveBytes(8, 2 * GIB, 2 * GIB)}, "too small"),
        ({"live": LiveBytes(8, 25 * GIB, 26 * GIB)}, "too small"),
        ({"live": LiveBytes(8, 2 * GIB, 3 * GIB, gradients=GIB)}, "too small"),
        ({"live": LiveBytes(8, GIB, 2 * GIB)}, "hold 7.00 GiB more than they use"),
        ({"peak_bytes": 1.05 * GIB}, "too small"),
        ({"batch_size": None}, "size of its batches"),
        ({"limit_bytes": None}, "memory was not seen"),
    ],
)
def test_what_is_unknown_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    found = headroom(watched(**changes), margin=0.0)
    assert found.low is None and reason in found.reason


def test_spawned_ranks_share_the_limit_that_each_was_told() -> None:
    from rightbatch.integrations.command.command import Command
    from rightbatch.integrations.command.observed import Observed
    from rightbatch.integrations.command.trial import TrialPlan, TrialResult
    from rightbatch.integrations.command.watch import watched_of

    observed = Observed()
    for pid in (1, 2):
        memory = {"device": "cpu", "limit": GIB, "shared_limit": GIB, "ceiling": GIB // 2}
        memory |= {"enforced": True, "peak": 10, "charged": 10}
        step = {"number": 1, "seconds": 1.0, "waited": 0.0, "examples": 4, "micro_batches": 1}
        about = {"evaluated": False, "saved": False, "epoch": None, "fixed": 0, "losses": []}
        observed.add({"event": "training", "pid": pid, "world": 2, "betas": None})
        observed.add({"event": "steps", "pid": pid, "steps": [step | {"memory": memory}], **about})
    assert watched_of(observed, 0).limit_bytes == GIB

    plan = TrialPlan(steps=1, memory=GIB, free=4 * GIB, margin=0.5)
    result = TrialResult("ok", observed, None, 0, 1.0, "", 0)
    observed.processes[1].torch = "2"
    command = Command(["python", "train.py", "{batch}"])
    trial = command._trial(8, plan, result, ())
    assert (trial.limit_bytes, trial.ceiling_bytes, trial.enforced) == (GIB, GIB // 2, False)


def test_the_noise_scale_is_that_of_the_same_loop() -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 1)
    noise = rb.NoiseScale(model)
    updates = []
    for _ in range(30):
        model.zero_grad()
        parts, before = [], torch.zeros(21)
        for examples in (8, 8, 4):
            x = torch.randn(examples, 20)
            loss = (model(x).squeeze(1) - x[:, 0] - 0.5 * torch.randn(examples)).square().mean() / 3
            loss.backward()
            noise.micro_batch(examples, weight=1 / 3)
            whole = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
            parts.append((float((whole - before).square().sum()), examples))
            before = whole.clone()
        updates.append(SampledUpdate(float(before.square().sum()), tuple(parts)))
        noise.step()
    found, expected = noise_scale(tuple(updates)), noise.estimate
    assert found is not None and expected is not None
    assert found.value == pytest.approx(expected.value, rel=1e-4)
    assert found.low == pytest.approx(expected.low, rel=1e-4)


def test_ranks_are_micro_batches_of_the_mean() -> None:
    one = SampledUpdate(14.0, ((4.0, 8), (5.0, 8)))
    mean = SampledUpdate(14.0 / 4, ((4.0, 8), (5.0, 8)), scale=0.5)
    first, second = noise_scale((one, one)), noise_scale((mean, mean))
    assert first is not None and second is not None
    assert first.gradient == pytest.approx(second.gradient)


def test_the_report_is_read_and_is_json() -> None:
    import json

    many = tuple(SampledUpdate(400.0 + n, ((110.0, 16), (105.0, 16))) for n in range(20))
    report = report_of(watched(updates=many, micro_batches=2), margin=0.05, memory=None)
    text = str(report)
    assert "batch 32 · 100 steps, 0.2 s each (25% waiting for data)" in text
    assert "peak 9.00 GiB of 24.0 GiB on cuda:0: about" in text
    assert "num_workers" in text
    document = json.loads(json.dumps(report.to_dict()))
    assert {
        "batch_size", "steps", "step_seconds", "loading_share", "peak_bytes", "limit_bytes",
        "largest_batch_size", "noise_scale", "losses", "advice", "reason", "exit_code",
    } <= document.keys()  # fmt: skip
    assert document["loading_share"] == pytest.approx(0.25)


def test_a_larger_batch_is_advised_up_to_the_noise_scale() -> None:
    # |G|² = 1 and tr(Σ) = 320: a noise scale of 320
    many = tuple(SampledUpdate(4.0 + 40.0, ((21.0, 16), (21.0, 16))) for _ in range(20))
    report = report_of(watched(updates=many, micro_batches=2), margin=0.05, memory=None)
    assert report.noise_scale is not None
    assert report.noise_scale.value == pytest.approx(320)
    [advice] = [each for each in report.advice if "instead of" in each]
    assert advice.startswith("64 instead of 32")  # 128 does not fit


def test_the_noise_scale_is_that_of_the_later_half_or_of_the_last_samples() -> None:
    from rightbatch._training.sampled_noise import later

    def updates(*numbers: int) -> list[SampledUpdate]:
        return [SampledUpdate(9.0, ((4.0, 8), (4.0, 8)), update=number) for number in numbers]

    assert [each.update for each in later(updates(*range(0, 101, 5)))] == [*range(50, 101, 5)]
    assert [each.update for each in later(updates(*range(0, 101, 20)))] == [20, 40, 60, 80, 100]
    assert len(later(updates(3, 9))) == 2
