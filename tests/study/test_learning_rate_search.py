"""The search for each size's learning rate, on trainings whose best rate is known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from rightbatch._errors import MissingExtraError
from rightbatch._study.config import StudyConfig
from rightbatch._study.learning_rate_search import (
    HIGH,
    LOW,
    best_factor,
    next_factor,
    ranks,
    search_learning_rates,
)
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import Curve, Run, RunKey, Status, Target

optuna = pytest.importorskip("optuna")

TARGET = Target("evaluation_loss", 0.2)
LEAST = 300.0  # steps at the best rate
DIVERGES = 8.0  # times the best rate
OPTIMA = {8: 0.17, 32: 1.0, 128: 5.5}


def curve(steps: float, *values: float) -> Curve:
    places = np.linspace(steps / len(values), steps, len(values))
    return Curve(places, places, places, places, np.array(values))


def run_of(key: RunKey, status: Status, curves: Mapping[str, Curve], started: float = 0) -> Run:
    return Run(
        id=key.name,
        name=str(key),
        batch_size=key.batch_size,
        seed=key.seed,
        status=status,
        started=started,
        learning_rate_factor=key.learning_rate_factor,
        curves=curves,
        metrics={name: float(one.values[-1]) for name, one in curves.items()},
    )


def steps_with(factor: float, best: float) -> float:
    """A parabola of the rate's logarithm."""
    return LEAST * math.exp(0.5 * math.log(factor / best) ** 2)


class Trainings:
    """Trains at once; `order` is what was trained, `done` what there is."""

    def __init__(self, best: Mapping[int, float], stop_after: float = math.inf) -> None:
        self.best, self.stop_after = best, stop_after
        self.order: list[RunKey] = []
        self.rounds: list[list[RunKey]] = []
        self.done: dict[RunKey, Run] = {}

    def __call__(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Run]:
        self.rounds.append(list(keys))
        for key in keys:
            if key not in self.done:
                if len(self.order) >= self.stop_after:
                    raise KeyboardInterrupt
                self.order.append(key)
                self.done[key] = self.trained(key)
        return self.done

    def trained(self, key: RunKey) -> Run:
        best = self.best[key.batch_size]
        if key.learning_rate_factor > DIVERGES * best:
            return run_of(key, "diverged", {}, started=len(self.order))
        steps = steps_with(key.learning_rate_factor, best)
        measured = curve(steps, 1.0, TARGET.value)
        return run_of(key, "finished", {"evaluation_loss": measured}, started=len(self.order))


def asked(sizes: Sequence[int] = tuple(OPTIMA), seeds: Sequence[int] = (0, 1)) -> StudyConfig:
    options = StudyOptions(batches=sizes, seeds=seeds, epochs=1, out="unused")
    return StudyConfig("w", options, 16, TARGET)


@pytest.mark.parametrize("seed", range(4))
def test_each_size_is_trained_at_its_own_best_rate(seed: int) -> None:
    keys = search_learning_rates(asked(seeds=(seed,)), 12, Trainings(OPTIMA))
    for key in keys:
        steps = steps_with(key.learning_rate_factor, OPTIMA[key.batch_size])
        assert steps < 1.15 * LEAST


def test_the_best_of_the_trials_is_that_of_a_brute_force_search() -> None:
    train = Trainings(OPTIMA)
    keys = search_learning_rates(asked(), 8, train)
    for key in keys:
        best = OPTIMA[key.batch_size]
        of_size = [one for one in train.order if one.batch_size == key.batch_size]
        tried = [one.learning_rate_factor for one in of_size]
        assert key.learning_rate_factor == min(tried, key=lambda one: steps_with(one, best))


def test_all_seeds_get_the_rate_that_the_first_one_found() -> None:
    train, what = Trainings(OPTIMA), asked(seeds=(7, 3, 5))
    keys = search_learning_rates(what, 5, train)
    assert [(key.batch_size, key.seed) for key in keys] == [
        (key.batch_size, key.seed)
        for key in what.keys()  # noqa: SIM118  no dict
    ]
    assert len({(key.batch_size, key.learning_rate_factor) for key in keys}) == len(OPTIMA)
    assert {key.seed for key in train.order} == {7}
    assert {key for key in keys if key.seed == 7} <= set(train.order)


def test_a_round_has_a_trial_of_each_size_and_the_first_one_keeps_the_rule() -> None:
    train = Trainings(OPTIMA)
    search_learning_rates(asked(), 6, train)
    assert len(train.rounds) == 6
    assert all({key.batch_size for key in keys} == set(OPTIMA) for keys in train.rounds)
    assert {key.learning_rate_factor for key in train.rounds[0]} == {1.0}


def test_factors_are_within_bounds_readable_and_never_the_same() -> None:
    train = Trainings({8: 0.1, 32: 10.0})
    search_learning_rates(asked((8, 32)), 25, train)
    factors = [key.learning_rate_factor for key in train.order]
    assert all(LOW <= factor <= HIGH and factor == float(f"{factor:.3g}") for factor in factors)
    assert len(set(train.order)) == len(train.order) == 50


@pytest.mark.parametrize("after", [0, 1, 5, 11, 14])
def test_a_search_that_is_interrupted_goes_on_as_if_it_had_not_been(after: int) -> None:
    whole = Trainings(OPTIMA)
    keys = search_learning_rates(asked(), 5, whole)
    train = Trainings(OPTIMA, stop_after=after)
    with pytest.raises(KeyboardInterrupt):
        search_learning_rates(asked(), 5, train)
    train.stop_after = math.inf
    assert search_learning_rates(asked(), 5, train, list(train.done.values())) == keys
    assert train.order == whole.order


def test_more_trials_join_those_that_were_done() -> None:
    train = Trainings(OPTIMA)
    search_learning_rates(asked(), 4, train)
    before = list(train.order)
    search_learning_rates(asked(), 7, train, list(train.done.values()))
    whole = Trainings(OPTIMA)
    search_learning_rates(asked(), 7, whole)
    assert train.order == whole.order
    assert train.order[: len(before)] == before


def test_trials_of_another_sampler_are_learned_from_and_not_repeated() -> None:
    train = Trainings({32: 3.0})
    for factor in (1.0, 0.2, 2.9, 9.0):
        key = RunKey(32, 0, factor)
        train.done[key] = train.trained(key)
    keys = search_learning_rates(asked((32,)), 5, train, list(train.done.values()))
    assert len(train.order) == 1
    assert steps_with(keys[0].learning_rate_factor, 3.0) < 1.01 * LEAST


def test_of_several_tries_at_a_run_the_newest_counts() -> None:
    train, key = Trainings({32: 1.0}), RunKey(32, 0)
    done = run_of(key, "finished", {"evaluation_loss": curve(400, 1, 0.1)}, started=2)
    stopped = run_of(key, "stopped", {"evaluation_loss": curve(1, 1, 0.1)}, started=1)
    train.done[key] = done
    worse = run_of(RunKey(32, 0, 3.0), "finished", {"evaluation_loss": curve(500, 1, 0.1)}, 3)
    keys = search_learning_rates(asked((32,)), 2, train, [done, worse, stopped])
    assert train.order == []
    assert keys == [RunKey(32, 0), RunKey(32, 1)]


def test_a_size_that_memory_does_not_suffice_for_is_tried_once() -> None:
    class Short(Trainings):
        def trained(self, key: RunKey) -> Run:
            if key.batch_size == 128:
                return run_of(key, "out_of_memory", {})
            return super().trained(key)

    train = Short(OPTIMA)
    keys = search_learning_rates(asked(), 4, train)
    assert [key for key in train.order if key.batch_size == 128] == [RunKey(128, 0)]
    assert {key.learning_rate_factor for key in keys if key.batch_size == 128} == {1.0}
    assert sum(key.batch_size == 8 for key in train.order) == 4


def test_where_nothing_trains_the_rule_stays() -> None:
    class Failing(Trainings):
        def trained(self, key: RunKey) -> Run:
            return run_of(key, "failed", {})

    keys = search_learning_rates(asked((8,)), 4, Failing(OPTIMA))
    assert {key.learning_rate_factor for key in keys} == {1.0}


def a_run(status: Status = "finished", **curves: Curve) -> Run:
    return run_of(RunKey(8, 0), status, curves)


def test_the_target_counts_before_the_last_value_and_both_before_a_failure() -> None:
    runs = [
        a_run("diverged", evaluation_loss=curve(50, 1, 0.01)),
        a_run(evaluation_loss=curve(100, 1, 0.3)),
        a_run(evaluation_loss=curve(900, 1, 0.2)),
        a_run(evaluation_loss=curve(100, 1, 0.25)),
        a_run("stopped", evaluation_loss=curve(100, 1, 0.9)),
        a_run(evaluation_loss=curve(800, 1, 0.2)),
        a_run("out_of_memory"),
        a_run("failed"),
        a_run(),
    ]
    assert ranks(runs, TARGET) == [6, 3, 1, 2, 4, 0, 6, 6, 5]


@pytest.mark.parametrize(
    ("target", "name", "better", "worse"),
    [
        (Target("accuracy", 0.99), "accuracy", 0.9, 0.8),
        (Target("val_error", 0.01), "val_error", 0.8, 0.9),
        (None, "evaluation_loss", 0.8, 0.9),
        (None, "loss", 0.8, 0.9),
    ],
)
def test_last_values_are_compared_in_the_metric_s_direction(
    target: Target | None, name: str, better: float, worse: float
) -> None:
    values = (worse, better, math.nan)
    runs = [a_run(**{name: curve(1000, value, value)}) for value in values]
    assert ranks(runs, target) == [1, 0, 2]


def test_one_lucky_step_does_not_win() -> None:
    steady = a_run(loss=curve(4000, *[0.3] * 100))
    lucky = a_run(loss=curve(4000, *[0.5] * 99, 0.01))
    assert ranks([steady, lucky], None) == [0, 1]


def test_of_equals_the_rate_nearest_to_the_rule_is_taken() -> None:
    same = a_run(evaluation_loss=curve(100, 1, 0.2))
    assert best_factor([(0.1, same), (0.9, same), (1.2, same), (5.0, same)], TARGET) == 0.9


def test_nothing_is_written_and_how_much_optuna_says_stays_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        search_learning_rates(asked(), 6, Trainings(OPTIMA))
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


def test_without_optuna_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    train = Trainings(OPTIMA)
    with pytest.raises(MissingExtraError, match=r"rightbatch\[search\]"):
        search_learning_rates(asked(), 3, train)
    assert train.order == []


def test_the_search_beats_as_many_draws_by_chance() -> None:
    random = np.random.default_rng(0)

    def found_by(draw: Callable[[list[float]], float], best: float, trials: int) -> float:
        factors = [1.0]
        while len(factors) < trials:
            factors.append(draw(factors))
        return min(steps_with(factor, best) for factor in factors)

    by_search, by_chance = [], []
    for number in range(12):
        best = float(10 ** random.uniform(-0.9, 0.9))
        train = Trainings({16: best})
        what = asked((16,), (number,))
        tried: list[tuple[float, Run]] = []
        while (factor := next_factor(tried, what, 12, 16)) is not None:
            key = RunKey(16, number, factor)
            tried.append((factor, train.trained(key)))
        by_search.append(steps_with(best_factor(tried, TARGET), best))
        by_chance.append(found_by(lambda _: float(10 ** random.uniform(-1, 1)), best, 12))
    assert np.mean(by_search) < np.mean(by_chance)
