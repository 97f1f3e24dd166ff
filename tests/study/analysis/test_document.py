from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from study_runs import TARGET, curve, law_of, made, reaching

from rightbatch._study.analysis import document
from rightbatch._study.analysis.bands import band
from rightbatch._study.analysis.steps_to_target import find_crossing
from rightbatch._study.records import AXES, Run, Target


@dataclass
class Runs:
    all: list[Run] = field(default_factory=list)
    target: Target | None = TARGET
    title: str = "parts"

    def runs(self):
        return self.all


def runs_of(sizes=(8, 16, 32, 64, 128, 256), seeds=3):
    steps = law_of(300.0, 18_000.0)
    return [
        reaching(size, steps(size) * (1 + 0.01 * seed), seed)
        for size in sizes
        for seed in range(seeds)
    ]


def test_the_study_has_every_field_that_the_page_asks_for():
    found = document.study(Runs(runs_of()))
    assert found["schema"] == 1
    assert found["title"] == "parts"
    assert found["live"] is False
    assert found["target"] == {"metric": "evaluation_loss", "value": 0.5}
    assert found["axes"] == ["steps", "examples", "seconds", "epochs"]
    assert found["metrics"] == ["evaluation_loss"]
    assert set(found["answer"]) == {"sentences", "first"}
    assert set(found["critical"]) == {
        "steps_min",
        "examples_min",
        "batch_size",
        "low",
        "high",
        "rms_log_error",
        "sizes",
        "curve",
    }
    assert found["critical"]["sizes"] == 6
    assert isinstance(found["critical_reason"], str) and isinstance(found["gap_sentence"], str)
    for size in found["sizes"]:
        assert set(size) == {
            "batch_size",
            "runs",
            "statuses",
            "reached",
            "examples_per_second",
            "peak_bytes",
            "limit_bytes",
            "learning_rate",
            "gap",
            "loss_spread",
            "gradient_variance_of_batch",
            "color",
        }
        assert set(size["reached"]) == {"of", "count", "steps", "examples", "seconds"}
        assert set(size["reached"]["steps"]) == {"middle", "low", "high"}


def test_each_run_is_there_with_when_it_reached_the_target():
    runs = [*runs_of(), made(512, 0, status="out_of_memory"), made(None, None)]
    found = document.study(Runs(runs))
    assert [row["id"] for row in found["runs"]] == [run.id for run in runs]
    for row, run in zip(found["runs"], runs, strict=True):
        when = find_crossing(run, TARGET)
        assert row["reached"] == (vars(when) if when else None)
        assert "curves" not in row


def test_the_fitted_curve_spans_all_sizes_and_goes_through_the_critical_batch_size():
    critical = document.study(Runs(runs_of()))["critical"]
    sizes, steps, examples = np.array(critical["curve"]).T
    assert sizes[0] < 8 and sizes[-1] > 256
    assert (np.diff(sizes) > 0).all()
    assert examples == pytest.approx(sizes * steps)
    at = np.interp(critical["batch_size"], sizes, steps)
    assert at == pytest.approx(2 * critical["steps_min"], rel=0.01)


def test_a_study_that_trains_is_live():
    assert document.study(Runs([made(8, 0, status="running")]))["live"] is True


def test_there_is_neither_nan_nor_infinity_in_any_document():
    nothing = np.array([np.nan, np.inf, 1.0, -np.inf])
    run = made(
        8,
        0,
        {"loss": curve(8, nothing, nothing), "accuracy": curve(8, np.ones(4), nothing)},
        status="diverged",
        learning_rate=math.inf,
        seconds=math.nan,
        metrics={"loss": math.nan},
    )
    runs = [run, made(None, None, {"loss": curve(1, np.arange(4.0), nothing)})]
    for found in (
        document.study(Runs(runs)),
        document.study(Runs(runs, None)),
        document.study(Runs([])),
        document.curves(runs, "loss"),
        document.curves([], "loss"),
        document.run(run),
    ):
        json.dumps(found, allow_nan=False)
    assert document.run(run)["curves"]["loss"]["values"] == [None, None, 1.0, None]


def test_curves_are_the_bands_of_each_size_along_each_axis():
    runs = runs_of(sizes=(8, 64))
    found = document.curves(runs, "evaluation_loss")
    assert [(size["batch_size"], size["runs"]) for size in found["sizes"]] == [(8, 3), (64, 3)]
    for size in found["sizes"]:
        assert set(size["by"]) == set(AXES)
        for axis in AXES:
            expected = band(
                [run for run in runs if run.batch_size == size["batch_size"]],
                "evaluation_loss",
                axis,
            )
            for name in ("x", "middle", "low", "high"):
                assert size["by"][axis][name] == pytest.approx(getattr(expected, name), rel=1e-5)


def test_runs_without_a_batch_size_have_a_curve_and_a_name_each():
    runs = [
        made(None, None, {"loss": curve(1, np.arange(1.0, 4), np.ones(3))}, name=name, id=name)
        for name in ("first", "second")
    ]
    found = document.curves(runs, "loss")["sizes"]
    assert [(one["batch_size"], one["runs"], one["name"]) for one in found] == [
        (None, 1, "first"),
        (None, 1, "second"),
    ]


def test_an_axis_that_was_not_recorded_has_no_places():
    whole = curve(8, np.arange(1.0, 4), np.ones(3))
    bare = type(whole)(whole.steps, whole.steps * np.nan, whole.seconds, whole.epochs, whole.values)
    (size,) = document.curves([made(8, 0, {"loss": bare})], "loss")["sizes"]
    assert size["by"]["examples"] == {"x": [], "middle": [], "low": [], "high": []}
    assert len(size["by"]["seconds"]["x"]) == 3


def test_the_curves_are_of_the_learning_rates_that_the_figures_are_of():
    runs = [
        *(reaching(8, 100.0, seed, factor=1.0) for seed in range(2)),
        *(reaching(8, 50.0, seed, factor=2.0) for seed in range(3)),
    ]
    assert document.curves(runs, "evaluation_loss", TARGET)["sizes"][0]["runs"] == 3


def test_very_many_sizes_have_fewer_places_each():
    steps = np.arange(1.0, 2001)
    runs = [made(size, 0, {"loss": curve(size, steps, 1 / steps)}) for size in range(1, 121)]
    found = document.curves(runs, "loss")["sizes"]
    assert all(50 <= len(size["by"]["steps"]["x"]) <= 100 for size in found)
    assert len(document.curves(runs[:5], "loss")["sizes"][0]["by"]["steps"]["x"]) > 290


def test_a_run_has_all_of_its_metrics_along_all_axes():
    steps = np.arange(1.0, 5001)
    run = made(8, 0, {"loss": curve(8, steps, np.sin(steps)), "accuracy": curve(8, steps, steps)})
    found = document.run(run)
    assert found["id"] == run.id
    assert set(found["curves"]) == {"loss", "accuracy"}
    for each in found["curves"].values():
        assert set(each) == {*AXES, "values"}
        assert {len(values) for values in each.values()} == {len(each["values"])}
        assert len(each["values"]) <= 1000
    assert max(found["curves"]["loss"]["values"]) == pytest.approx(np.sin(steps).max(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3, 1e12])
def test_numbers_are_rounded_to_six_digits_and_written_short(scale):
    values = np.random.default_rng(0).standard_normal(500) * scale
    (found,) = document.curves(
        [made(8, 0, {"loss": curve(8, np.arange(1.0, 301), values[:300])})], "loss"
    )["sizes"]
    middle = found["by"]["steps"]["middle"]
    assert middle == pytest.approx(values[:300], rel=1e-5, abs=0)
    assert all(float(f"{value:.6g}") == value for value in middle)
