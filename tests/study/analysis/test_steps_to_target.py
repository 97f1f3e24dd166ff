from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from study_runs import TARGET, curve, made, noisy, reaching

from rightbatch._study.analysis.steps_to_target import find_crossing, smooth
from rightbatch._study.records import Target


def evaluated(values, steps=None, metric="evaluation_loss", **fields):
    steps = np.arange(1.0, len(values) + 1) if steps is None else np.array(steps, float)
    return made(10, 0, {metric: curve(10, steps, np.array(values, float))}, **fields)


def test_between_two_measurements_the_metric_is_linear_in_the_logarithm_of_steps():
    when = find_crossing(evaluated([1.0, 0.0], steps=[100, 400]), Target("evaluation_loss", 0.5))
    assert when is not None
    assert when.steps == pytest.approx(200)  # the geometric mean, halfway
    assert when.examples == pytest.approx(2000)
    assert when.seconds == pytest.approx(2.0)


def test_a_curve_that_is_linear_in_the_logarithm_is_met_exactly_wherever_it_was_measured():
    for places in (5, 17, 40):
        steps = np.geomspace(10, 5000, places)
        when = find_crossing(
            evaluated(3 - 0.3 * np.log(steps), steps), Target("evaluation_loss", 1.0)
        )
        assert when is not None
        assert when.steps == pytest.approx(np.exp(2 / 0.3))


def test_seconds_follow_the_speed_between_the_two_measurements():
    run = evaluated([1.0, 0.0], steps=[100, 400])
    slow = dataclasses.replace(run.curves["evaluation_loss"], seconds=np.array([5.0, 20.0]))
    when = find_crossing(made(10, 0, {"evaluation_loss": slow}), Target("evaluation_loss", 0.5))
    assert when is not None
    assert when.seconds == pytest.approx(5 + 15 * (200 - 100) / 300)


def test_metrics_that_rise_are_reached_from_below():
    when = find_crossing(evaluated([0.5, 0.7, 0.9], metric="accuracy"), Target("accuracy", 0.8))
    assert when is not None
    assert when.steps == pytest.approx(2 * (3 / 2) ** 0.5)


def test_the_first_time_counts_even_if_the_metric_gets_worse_again():
    when = find_crossing(evaluated([1.0, 0.2, 0.9, 0.1]), Target("evaluation_loss", 0.6))
    assert when is not None
    assert 1 < when.steps < 2


def test_a_first_measurement_that_is_good_enough_counts_as_it_stands():
    when = find_crossing(evaluated([0.3, 0.2], steps=[50, 60]), TARGET)
    assert when is not None
    assert when.steps == 50


def test_a_measurement_before_the_first_step_has_no_logarithm_and_is_interpolated_evenly():
    when = find_crossing(evaluated([1.0, 0.0], steps=[0, 400]), TARGET)
    assert when is not None
    assert when.steps == 200


@pytest.mark.parametrize("status", ["diverged", "out_of_memory", "failed"])
def test_a_run_that_ended_before_the_target_never_reached_it(status):
    assert find_crossing(evaluated([1.0, 0.8, np.nan], status=status), TARGET) is None
    assert find_crossing(made(10, 0, status=status), TARGET) is None


def test_a_run_that_ended_badly_after_the_target_has_reached_it():
    assert find_crossing(evaluated([1.0, 0.4, np.inf], status="diverged"), TARGET) is not None


def test_what_is_not_finite_is_no_measurement():
    with_holes = find_crossing(
        evaluated([np.inf, 1.0, np.nan, 0.0], steps=[1, 100, 200, 400]), TARGET
    )
    assert with_holes == find_crossing(evaluated([1.0, 0.0], steps=[100, 400]), TARGET)


def test_an_axis_that_was_not_recorded_is_not_told():
    run = evaluated([1.0, 0.0], steps=[100, 400])
    nothing = np.full(2, np.nan)
    only_seconds = dataclasses.replace(
        run.curves["evaluation_loss"], steps=nothing, examples=nothing, epochs=nothing
    )
    when = find_crossing(made(None, None, {"evaluation_loss": only_seconds}), TARGET)
    assert when is not None
    assert np.isnan(when.steps)
    assert 1 < when.seconds < 4


def test_a_running_run_is_looked_at_anew_and_one_that_ended_is_not_confused_with_another():
    run = reaching(8, 100.0, status="running")
    assert find_crossing(run, TARGET) is not None
    for steps in (100.0, 250.0, 100.0):
        when = find_crossing(reaching(8, steps), TARGET)
        assert when is not None
        assert when.steps == pytest.approx(steps, rel=1e-3)


def test_without_a_target_nothing_is_reached():
    assert find_crossing(reaching(8, 100.0), None) is None


def power(examples):
    return 2.3 * (1 + examples / 500) ** -0.5


def test_the_training_loss_without_noise_is_met_where_its_law_says_at_every_batch_size():
    wanted = power(20_000.0)
    for size in (4, 16, 64, 256):
        when = find_crossing(noisy(size, power, 0.0, 0, examples=40_000), Target("loss", wanted))
        assert when is not None
        assert when.examples == pytest.approx(20_000, rel=0.02)
        assert when.steps == pytest.approx(when.examples / size)


def errors(size, every=1, seeds=40):
    """Of the logarithm of the examples to the target, with the noise of single examples."""
    wanted = Target("loss", power(20_000.0))
    runs = [noisy(size, power, 0.6, seed, examples=40_000, every=every) for seed in range(seeds)]
    hits = [when for run in runs if (when := find_crossing(run, wanted)) is not None]
    assert len(hits) == seeds
    return np.log([when.examples / 20_000 for when in hits])


def test_noise_of_the_training_loss_favours_no_batch_size():
    by_size = {size: errors(size) for size in (4, 16, 64, 256, 1024)}
    biases = [each.mean() for each in by_size.values()]
    assert np.abs(biases).max() < 0.03
    # A naive first crossing is decades early at batch size 4: chance dips are as large as the loss.
    run = noisy(4, power, 0.6, 0, examples=40_000)
    raw = run.curves["loss"]
    assert raw.examples[raw.values <= power(20_000.0)][0] < 4_000


def test_how_often_the_training_loss_is_logged_matters_little():
    assert abs(errors(16).mean() - errors(16, every=10).mean()) < 0.03


def test_all_batch_sizes_are_smoothed_over_as_many_examples():
    spreads = {}
    for size in (4, 16, 64, 256):
        run = noisy(size, lambda examples: np.ones_like(examples), 1.0, 0, examples=200_000)
        places, means = smooth(run, run.curves["loss"])
        late = places[1] > 50_000
        spreads[size] = (means[late] - 1).std() / np.sqrt(1 / (0.2 * places[1][late].mean()))
    assert all(0.5 < spread < 2 for spread in spreads.values()), spreads


def test_a_lucky_first_step_reaches_nothing():
    steps = np.arange(1.0, 1001)
    losses = np.where(steps == 1, 0.0, 2.0)
    assert find_crossing(made(4, 0, {"loss": curve(4, steps, losses)}), Target("loss", 0.5)) is None


def test_a_batch_larger_than_the_window_is_a_mean_of_its_own():
    law = [3.0, 2.0, 1.0, 0.4]
    run = made(5000, 0, {"loss": curve(5000, np.arange(1.0, 5), np.array(law))})
    places, means = smooth(run, run.curves["loss"])
    assert means == pytest.approx(law)
    assert places[0] == pytest.approx([0.5, 1.5, 2.5, 3.5])


def test_without_a_record_of_examples_steps_times_the_batch_size_stand_for_them():
    run = noisy(16, power, 0.3, 1, examples=40_000)
    bare = dataclasses.replace(
        run.curves["loss"], examples=np.full_like(run.curves["loss"].steps, np.nan)
    )
    wanted = Target("loss", power(20_000.0))
    when, known = find_crossing(made(16, 1, {"loss": bare}), wanted), find_crossing(run, wanted)
    assert when is not None and known is not None
    assert when.steps == pytest.approx(known.steps, rel=1e-6)
