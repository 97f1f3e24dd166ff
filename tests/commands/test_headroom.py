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
from rightbatch._training.watched import SampledUpdate, Watched

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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peak_bytes": 1.05 * GIB}, "too small"),
        ({"batch_size": None}, "size of its batches"),
        ({"limit_bytes": None}, "memory was not seen"),
    ],
)
def test_what_is_unknown_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    found = headroom(watched(**changes), margin=0.0)
    assert found.low is None and reason in found.reason


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
