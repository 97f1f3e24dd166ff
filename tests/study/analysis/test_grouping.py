from __future__ import annotations

import numpy as np
import pytest
from study_runs import TARGET, curve, made, reaching

from rightbatch._study.analysis.grouping import (
    common_axis,
    final_value,
    group_runs,
    mean_between,
    metrics_of,
    value_at,
)


def chosen_of(runs, target=TARGET):
    return {size.batch_size: size.factor for size in group_runs(runs, target).sizes}


def test_runs_are_sorted_by_batch_size():
    runs = [reaching(size, 100.0, seed) for size in (64, 8) for seed in range(2)]
    groups = group_runs([*runs, made(None, None)], TARGET)
    assert [(size.batch_size, len(size.chosen)) for size in groups.sizes] == [(8, 2), (64, 2)]
    assert [run.name for run in groups.unsized] == ["None-None-1.0"]


def test_a_run_that_was_begun_anew_counts_once():
    old = reaching(8, 100.0, status="stopped", started=1.0)
    new = reaching(8, 200.0, started=2.0)
    groups = group_runs([new, old], TARGET)
    assert groups.sizes[0].runs == (new,)
    assert groups.superseded == (old,)


def test_a_run_that_was_stopped_and_not_begun_anew_counts():
    older, newer = (reaching(8, 100.0, status="stopped", started=t) for t in (1.0, 2.0))
    groups = group_runs([older, newer], TARGET)
    assert groups.sizes[0].runs == (newer,)


def test_runs_of_another_logger_that_share_size_and_seed_all_count():
    runs = [made(16, 0, started=float(k), id=str(k)) for k in range(3)]
    unseeded = [made(16, None, status="stopped", started=float(k), id=f"u{k}") for k in range(2)]
    assert len(group_runs([*runs, *unseeded]).sizes[0].runs) == 5


def test_each_size_has_the_learning_rate_whose_median_run_takes_the_fewest_steps():
    steps = {(8, 1.0): [100, 110, 300], (8, 2.0): [90, 200, 210]}  # the luckiest run is of 2.0
    steps |= {(64, 1.0): [50, 50, 50], (64, 2.0): [40, 41, 42]}
    runs = [
        reaching(size, float(each), seed, factor=factor)
        for (size, factor), of in steps.items()
        for seed, each in enumerate(of)
    ]
    groups = group_runs(runs, TARGET)
    assert {size.batch_size: size.factor for size in groups.sizes} == {8: 1.0, 64: 2.0}
    assert [len(size.chosen) for size in groups.sizes] == [3, 3]
    assert groups.sizes[0].factors == (1.0, 2.0)
    assert len(groups.sizes[0].runs) == 6


def test_a_learning_rate_that_most_seeds_do_not_survive_is_not_the_best():
    fast = [reaching(8, 10.0, 0, factor=4.0)]
    fast += [made(8, seed, factor=4.0, status="diverged") for seed in (1, 2)]
    slow = [reaching(8, 100.0, seed, factor=1.0) for seed in range(3)]
    assert chosen_of([*fast, *slow]) == {8: 1.0}


@pytest.mark.parametrize(("metric", "best"), [("evaluation_loss", 0.5), ("accuracy", 2.0)])
def test_without_a_target_the_learning_rate_that_ends_best_counts(metric, best):
    runs = [
        made(8, seed, {metric: curve(8, np.array([1.0, 2.0]), np.array([1.0, end]))}, factor=factor)
        for factor, end in ((0.5, 0.3), (1.0, 0.4), (2.0, 0.5))
        for seed in range(2)
    ]
    assert chosen_of(runs, None) == {8: best}


def test_where_nothing_is_known_yet_the_rule_s_learning_rate_counts():
    assert chosen_of([made(8, 0, factor=f, status="running") for f in (0.5, 2.0, 1.0)]) == {8: 1.0}


def test_the_most_telling_metric_comes_first():
    names = ["peak_bytes", "loss", "accuracy", "evaluation_loss", "train/box_loss", "noise_scale"]
    runs = [made(8, 0, {n: curve(8, np.ones(1), np.ones(1)) for n in [*names, "examples"]})]
    assert metrics_of(runs) == [
        "evaluation_loss",
        "accuracy",
        "loss",
        "noise_scale",
        "peak_bytes",
        "train/box_loss",
    ]
    assert metrics_of(runs, TARGET)[0] == "evaluation_loss"
    from rightbatch._study.records import Target

    assert metrics_of(runs, Target("loss", 1.0))[0] == "loss"


def losses(values, steps=None, **fields):
    at = np.arange(1.0, len(values) + 1) if steps is None else np.array(steps, float)
    return made(10, 0, {"loss": curve(10, at, np.array(values, float))}, **fields)


def test_a_mean_weighs_each_value_with_the_stretch_that_it_is_the_mean_of():
    run = losses([4.0, 1.0, 2.0], steps=[1, 4, 5])
    assert mean_between(run, "loss", "steps", 0, 5) == pytest.approx((4 + 3 * 1 + 2) / 5)
    assert mean_between(run, "loss", "steps", 3, 4.5) == pytest.approx((1 * 1 + 0.5 * 2) / 1.5)
    assert mean_between(run, "loss", "steps", 0, 5, power=2) == pytest.approx(
        ((16 + 3 * 1 + 4) / 5) ** 0.5
    )
    assert mean_between(run, "loss", "steps", 6, 7) is None
    assert mean_between(losses([np.nan, 2.0]), "loss", "steps", 0, 2) == 2.0


def test_the_final_loss_is_the_mean_over_the_last_tenth():
    run = losses([9.0] * 90 + [1.0, 3.0] * 5)
    assert final_value(run, "loss") == pytest.approx(2.0)


def test_a_run_that_diverged_has_no_final_value():
    assert final_value(losses([1.0, 0.5], status="diverged"), "loss") is None


def test_a_value_at_a_place_is_between_its_neighbours_and_not_beyond_the_end():
    run = made(10, 0, {"accuracy": curve(10, np.array([1.0, 3.0]), np.array([0.2, 0.6]))})
    assert value_at(run, "accuracy", "examples", 20) == pytest.approx(0.4)
    assert value_at(run, "accuracy", "examples", 31) is None


def test_runs_are_compared_along_an_axis_that_all_have():
    ours = losses([1.0, 2.0])
    bare = curve(10, np.array([1.0, 2.0]), np.ones(2))
    theirs = made(10, 1, {"loss": type(bare)(bare.steps, bare.steps * np.nan, *(bare.steps,) * 3)})
    assert common_axis([ours], "loss") == "examples"
    assert common_axis([ours, theirs], "loss") == "epochs"
    assert common_axis([ours], "accuracy") is None
