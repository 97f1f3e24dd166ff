"""Every piece of advice is given where it applies, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rightbatch._noise import NoiseEstimate
from rightbatch._training.scaling import scaling
from rightbatch._tune.advice import Situation, advise
from rightbatch._tune.decision import Expected

CHOSEN = Expected(16, 16, 1, 100.0, 95.0, 105.0, 0.9, 1.0, 1.0, 1.0)
NOISE = NoiseEstimate(100.0, 80.0, 120.0, "examples", 1.0, 100.0, 8)
NOTHING = Situation(
    chosen=CHOSEN,
    noise=NOISE,
    averaged=None,
    scaling=scaling(None, 16, 16, 100.0),
    base_batch=16,
    examples=1600,
    drop_last=False,
    workers=0,
    batch_norm=False,
    values_per_channel=None,
    loading=0.01,
    bf16=1.0,
    unsteady=0.01,
    losses=[(16 * i, 2.0 - i / 100) for i in range(100)],
    target_reached=None,
)


def test_where_nothing_applies_nothing_is_said() -> None:
    assert advise(NOTHING) == []


@pytest.mark.parametrize(
    ("code", "changes", "figure", "remedy"),
    [
        (
            "parts_differ",
            {"parts_differ": 0.66, "parts_reason": "the loss compares examples"},
            0.66,
            "one part on the device",
        ),
        (
            "parts_differ",
            {
                "parts_differ": 0.66,
                "parts_reason": "the loss compares examples",
                "chosen": replace(CHOSEN, micro_batch_size=4, accumulation=4),
            },
            0.66,
            "--max-batch 4",
        ),
        ("not_improving", {"losses": [(16 * i, 2.0) for i in range(100)]}, 1.0, "--base-batch"),
        ("target_not_reached", {"target_reached": False}, 1.01, "--budget"),
        ("noise_scale_unknown", {"noise": replace(NOISE, value=None, high=math.inf)}, 80, "budget"),
        ("above_noise_scale", {"chosen": replace(CHOSEN, batch_size=128)}, 0.1, "smaller"),
        ("below_noise_scale", {"chosen": replace(CHOSEN, batch_size=4)}, 25, "devices"),
        ("few_values_per_channel", {"batch_norm": True, "values_per_channel": 8}, 8, "GroupNorm"),
        (
            "accumulation_changes_batch_norm",
            {"batch_norm": True, "chosen": replace(CHOSEN, micro_batch_size=4, accumulation=4)},
            4,
            "recalibrate_batchnorm",
        ),
        ("learning_rate", {"scaling": scaling(None, 16, 64, 1e9)}, 4, "Warm up"),
        ("few_updates", {"examples": 80}, 5, "in updates"),
        ("small_last_batch", {"examples": 1602}, 2, "drop_last"),
        ("loader_is_slow", {"loading": 0.5}, 0.5, "workers to 1"),
        ("loader_is_slow", {"loading": 2.0, "workers": 2}, 2.0, "workers to 5"),
        ("mixed_precision", {"bf16": 1.6}, 1.6, "bf16"),
        ("unsteady_times", {"unsteady": 0.3}, 0.3, "quiet"),
    ],
)
def test_it_is_said_with_its_figure_and_remedy_where_it_applies(
    code: str, changes: dict[str, Any], figure: float, remedy: str
) -> None:
    advice = advise(replace(NOTHING, **changes))
    assert [each.code for each in advice] == [code]
    assert advice[0].figure == pytest.approx(figure, rel=0.02)
    assert remedy in advice[0].remedy
    assert set(advice[0].to_dict()) == {"code", "text", "figure", "remedy"}


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_last": True, "examples": 1602},
        {"batch_norm": True, "values_per_channel": 400},
        {"values_per_channel": 2},
        {"chosen": replace(CHOSEN, micro_batch_size=4, accumulation=4)},
        {"loading": 0.5, "workers": 2},
        {"target_reached": True},
        {"bf16": None},
    ],
)
def test_it_is_not_said_where_it_does_not(changes: dict[str, Any]) -> None:
    assert advise(replace(NOTHING, **changes)) == []


def test_adams_settings_are_said_with_its_learning_rate() -> None:
    advice = advise(replace(NOTHING, scaling=scaling((0.9, 0.999), 16, 32, 100.0)))
    assert "beta2 to 0.998" in advice[0].text
    assert "Malladi" in advice[0].remedy
