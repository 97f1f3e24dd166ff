"""Runs without hope, against the median rule worked out by brute force."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from study_runs import plan_of

from rightbatch._study.marks import MARKS, Marks, mark_after, seconds_of
from rightbatch._study.pruning import HANDICAP, PATIENCE, STARTUP, WARM_UP, Pruner
from rightbatch._study.records import Curve, Ended, Point, Run, RunKey, Status, Target
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent
from rightbatch._study.sweep import Sweep

LOSS = "evaluation_loss"
FINISHED = Ended("finished", "1 epochs")

Way = list[tuple[float, float]]
"""Seconds, and what was measured then."""


def falling(pace: float, until: float = 20.0, every: float = 0.03) -> Way:
    """A loss that falls to its e-th part in `pace` seconds."""
    return [(t, math.exp(-t / pace)) for t in np.arange(every, until, every).tolist()]


def rising(pace: float) -> Way:
    return [(t, 1 - value) for t, value in falling(pace)]


def points_of(way: Way, name: str = LOSS) -> list[Point]:
    return [
        Point(step, step, seconds, 0.0, {name: value}, 0.0)
        for step, (seconds, value) in enumerate(way, start=1)
    ]


def judged(
    pruner: Pruner, key: RunKey, way: Way, name: str = LOSS, status: Status = "finished"
) -> str | None:
    """Lets a run go its way, to its end or to where it is pruned."""
    for point in points_of(way, name):
        if (why := pruner.verdict(key, [point])) is not None:
            pruner.ended(key, Ended("stopped", why))
            return why
    pruner.ended(key, Ended(status, ""))
    return None


def known_at(way: Way, mark: int) -> float | None:
    """The newest that was measured by then."""
    return next((value for t, value in reversed(way) if t <= seconds_of(mark)), None)


def pruned_by_brute_force(way: Way, rivals: Sequence[Way], times: Sequence[float]) -> int | None:
    """The mark at which a run is hopeless; of measurements that are dense in marks."""
    behind = 0
    best = math.inf
    for mark in range(MARKS):
        if seconds_of(mark) >= way[-1][0]:
            return None
        value = known_at(way, mark)
        if value is None:
            continue
        best = min(best, value)
        then = [known_at(rival, mark - HANDICAP) for rival in rivals]
        others = [value for value in then if value is not None]
        is_time = len(rivals) >= STARTUP and seconds_of(mark) >= WARM_UP * np.median(times)
        behind = behind + 1 if is_time and others and best > np.median(others) else 0
        if behind == PATIENCE:
            return mark
    return None


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_ended_where_the_median_rule_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    pruner = Pruner(Target(LOSS, 0.01))
    finished: list[tuple[int, Way]] = []
    verdicts = set()
    for size, number in itertools.product((8, 16, 32, 64, 128), range(3)):
        until = float(random.uniform(5, 20))
        way = falling(float(10 ** random.uniform(-0.5, 1)), until)
        rivals = [other for its, other in finished if its != size]
        expected = pruned_by_brute_force(way, rivals, [other[-1][0] for _, other in finished])
        why = judged(pruner, RunKey(size, number), way)
        if expected is None:
            assert why is None
            finished.append((size, way))
        else:
            median = np.median([known_at(rival, expected - HANDICAP) for rival in rivals])
            best = known_at(way, expected)
            assert why == (
                f"pruned: at {seconds_of(expected):.1f} s its best evaluation_loss of {best:.4g} "
                f"was above the median {median:.4g} that {len(rivals)} runs had at "
                f"{seconds_of(expected - HANDICAP):.1f} s"
            )
        verdicts.add(expected is None)
    assert verdicts == {True, False}, "the example has runs of both kinds"


def with_rivals(count: int, pace: float = 1.0, target: Target | None = None) -> Pruner:
    pruner = Pruner(target)
    for number in range(count):
        assert judged(pruner, RunKey(100, number), falling(pace)) is None
    return pruner


def test_none_is_ended_before_enough_others_have_finished() -> None:
    assert judged(with_rivals(STARTUP - 1), RunKey(8, 0), falling(50)) is None
    assert judged(with_rivals(STARTUP), RunKey(8, 0), falling(50)) is not None


def test_seeds_of_one_size_are_not_compared_with_each_other() -> None:
    pruner = with_rivals(3 * STARTUP)
    assert judged(pruner, RunKey(100, 99), falling(50)) is None


def test_learning_rates_of_one_size_are() -> None:
    pruner = with_rivals(STARTUP)
    assert judged(pruner, RunKey(100, 0, 0.1), falling(50)) is not None


def test_a_run_that_starts_slowly_is_not_judged_in_the_first_tenth_of_the_time() -> None:
    late = [(t, 1.0 if t < 1.5 else 0.0) for t, _ in falling(1)]
    assert judged(with_rivals(STARTUP), RunKey(8, 0), late) is None


def test_a_run_that_is_behind_now_and_then_goes_on() -> None:
    rivals = [(t, 0.5) for t, _ in falling(1)]
    pruner = Pruner(None)
    for number in range(STARTUP):
        # in every doubling the rivals are better for fewer marks than it takes
        waves = [(t, 0.1 if 4 * math.log2(t / 0.1) % 4 < PATIENCE - 1 else 0.9) for t, _ in rivals]
        judged(pruner, RunKey(100, number), waves)
    assert judged(pruner, RunKey(8, 0), rivals) is None


def test_a_run_that_reached_the_target_early_is_compared_with_after_its_end() -> None:
    short = falling(0.2, until=0.5)
    pruner = Pruner(Target(LOSS, 0.1))
    for number in range(STARTUP):
        judged(pruner, RunKey(100, number), short)
    late = [(t, 0.0 if t < 4 else 1.0) for t, _ in falling(1)]
    assert judged(pruner, RunKey(8, 0), late) is None, "the best so far counts"
    late = [(t, value) for t, value in falling(5) if t > 4]
    why = judged(pruner, RunKey(8, 1), late)
    assert f"the median {short[-1][1]:.4g} that {STARTUP} runs had" in (why or "")


def test_a_run_that_needs_less_than_twice_the_time_goes_on() -> None:
    pruner = with_rivals(STARTUP)
    assert judged(pruner, RunKey(8, 0), falling(1.9)) is None
    assert judged(pruner, RunKey(16, 0), falling(2.2)) is not None


@pytest.mark.parametrize("status", ["diverged", "failed", "out_of_memory", "stopped"])
def test_runs_that_did_not_finish_are_not_compared_with(status: Status) -> None:
    pruner = with_rivals(STARTUP - 1)
    judged(pruner, RunKey(100, 99), falling(1), status=status)
    assert judged(pruner, RunKey(8, 0), falling(50)) is None


def test_the_metric_of_the_target_is_compared_in_its_own_direction() -> None:
    pruner = Pruner(Target("accuracy", 0.99))
    for number in range(STARTUP):
        judged(pruner, RunKey(100, number), rising(5), "accuracy")
    assert judged(pruner, RunKey(8, 0), rising(1), "accuracy") is None
    why = judged(pruner, RunKey(16, 0), rising(15), "accuracy")
    assert why is not None
    assert "its best accuracy of" in why and "was below the median" in why


def test_without_a_target_the_evaluation_loss_is_compared_and_else_the_training_loss() -> None:
    pruner = with_rivals(STARTUP)
    both = [
        Point(p.steps, p.examples, p.seconds, 0, {LOSS: 0.0, "loss": 9.0}, 0)
        for p in points_of(falling(1))
    ]
    assert pruner.verdict(RunKey(8, 0), both) is None
    assert pruner.verdict(RunKey(16, 0), points_of(falling(50), "loss")) is None
    for number in range(STARTUP):
        judged(pruner, RunKey(200, number), falling(1), "loss")
    assert "its best loss of" in (judged(pruner, RunKey(32, 0), falling(50), "loss") or "")


def test_a_run_with_long_steps_is_judged_once_a_measurement() -> None:
    pruner = with_rivals(STARTUP)
    way = [(4.0 * step, 1.0) for step in range(1, PATIENCE + 1)]
    assert judged(pruner, RunKey(8, 0), way) is None
    assert judged(pruner, RunKey(8, 1), [*way, (4.0 * (PATIENCE + 3), 1.0)]) is not None


def test_a_run_that_is_begun_anew_is_judged_from_its_new_beginning() -> None:
    pruner, key = with_rivals(STARTUP), RunKey(8, 0)
    bad = points_of(falling(50))
    first = next(n for n in range(len(bad)) if pruner.verdict(key, [bad[n]]))
    pruner.ended(key, Ended("stopped", "its worker was lost; trained again"))
    assert all(pruner.verdict(key, [point]) is None for point in bad[:first])
    assert pruner.verdict(key, [bad[first]]) is not None


def run_of(key: RunKey, status: Status, way: Way) -> Run:
    seconds, values = (np.array(column) for column in zip(*way, strict=True))
    steps = np.arange(1.0, 1 + len(way))
    return Run(
        id=key.name,
        name=str(key),
        batch_size=key.batch_size,
        seed=key.seed,
        status=status,
        learning_rate_factor=key.learning_rate_factor,
        curves={LOSS: Curve(steps, steps, seconds, steps, values)},
    )


def test_runs_of_an_earlier_call_count_as_those_of_this_one() -> None:
    ways = {RunKey(100, number): falling(1 + 0.3 * number) for number in range(STARTUP)}
    now = Pruner(None)
    for key, way in ways.items():
        judged(now, key, way)
    runs = [run_of(key, "finished", way) for key, way in ways.items()]
    runs += [run_of(RunKey(200, 0), "stopped", falling(0.1))]
    resumed = Pruner(None, runs)
    for number, pace in enumerate((0.5, 1.5, 2.0, 8.0)):
        key = RunKey(8, number)
        assert judged(resumed, key, falling(pace)) == judged(now, key, falling(pace))


def test_of_the_training_loss_a_mark_has_the_mean_over_the_steps_since_the_one_before() -> None:
    random = np.random.default_rng(0)
    ends = np.cumsum(random.uniform(0.002, 0.02, 400))
    steps = np.cumsum(random.integers(1, 9, 400))
    values = random.uniform(0, 1, 400)
    marks = Marks("loss")
    for one in zip(ends.tolist(), steps.tolist(), values.tolist(), strict=True):
        marks.add(*one)
    weights = np.diff(steps, prepend=0)
    assert len(marks.at) > 10
    for mark, value in marks.at.items():
        since = seconds_of(mark - 1) if mark else 0.0
        inside = (ends > since) & (ends <= seconds_of(mark))
        assert value == pytest.approx(np.average(values[inside], weights=weights[inside]))


def test_what_is_no_number_is_no_measurement() -> None:
    marks = Marks(LOSS)
    for seconds, value in ((0.05, 0.7), (0.15, math.nan), (0.25, math.inf), (0.5, None)):
        marks.add(seconds, 1, value)
    assert set(marks.at) == set(range(mark_after(0.5)))
    assert set(marks.at.values()) == {0.7}


def test_it_is_safe_with_several_threads() -> None:
    pruner = with_rivals(STARTUP)
    alone = [judged(pruner, RunKey(8, 0), falling(pace)) for pace in (0.9, 4.0)]
    pruners = [with_rivals(STARTUP) for _ in range(2)]
    ready = threading.Barrier(8)

    def judge(number: int) -> str | None:
        ready.wait()
        way = falling(0.9 if number % 2 == 0 else 4.0)
        # so that no order of ends changes what the others are compared with
        return judged(pruners[number // 4], RunKey(8, number), way, status="failed")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(judge, range(8))) == alone * 4


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_is_the_one_of_optunas_median_pruner(seed: int) -> None:
    """With rivals delayed by the handicap, as trials that report at every mark."""
    optuna = pytest.importorskip("optuna")
    random = np.random.default_rng(seed)
    paces = (10 ** random.uniform(-0.5, 1, STARTUP + 3)).tolist()
    pruner = Pruner(None)
    first = mark_after(WARM_UP * falling(1)[-1][0])
    reference = optuna.create_study(
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=first)
    )
    for number, pace in enumerate(paces):
        assert judged(pruner, RunKey(100, number), falling(pace)) is None
        known = {mark: known_at(falling(pace), mark) for mark in range(MARKS)}
        delayed = {mark + HANDICAP: value for mark, value in known.items() if value is not None}
        reference.add_trial(optuna.trial.create_trial(value=1.0, intermediate_values=delayed))
    for pace in (0.5, 2.0, 4.0, 8.0, 16.0):
        way, trial, behind, expected = falling(pace), reference.ask(), 0, None
        for mark in range(MARKS):
            value = known_at(way, mark)
            if value is not None and seconds_of(mark) < way[-1][0] and expected is None:
                trial.report(value, mark)
                behind = behind + 1 if trial.should_prune() else 0
                expected = mark if behind == PATIENCE else None
        reference.tell(trial, state=optuna.trial.TrialState.FAIL)
        why = judged(pruner, RunKey(8, 0), way, status="failed")
        assert (why is None) == (expected is None)
        if expected is not None:
            assert f"at {seconds_of(expected):.1f} s its best" in (why or "")


class InOrder:
    """A place, a log and a board in one: runs go ways that are known."""

    def __init__(self, way: Callable[[RunKey], Way]) -> None:
        self.way = way
        self.logged: dict[RunKey, Ended] = {}
        self.key = RunKey(0, 0)

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        for point in points_of(self.way(plan.key)):
            yield RunEvent(points=(point,))
        yield RunEvent(ended=FINISHED)

    def begin(self, plan: RunPlan) -> InOrder:
        self.key = plan.key
        return self

    def points(self, points: Sequence[Point]) -> None: ...

    def began(self, key: RunKey) -> None: ...

    def went(self, key: RunKey, points: Sequence[Point]) -> None: ...

    def ended(self, *args: object) -> None:
        if isinstance(args[0], Ended):
            self.logged[self.key] = args[0]

    def stop(self) -> None: ...


def swept(keys: Iterable[RunKey], way: Callable[[RunKey], Way]) -> Mapping[RunKey, Ended]:
    place = InOrder(way)
    sweep = Sweep(place, place.begin, place, judge=Pruner(None))
    found = sweep.run([plan_of(key) for key in keys])
    assert found == place.logged
    return found


def test_a_sweep_ends_the_seeds_of_a_hopeless_size_and_no_others() -> None:
    paces = {8: 30.0, 16: 1.0, 32: 0.9, 64: 1.0, 128: 1.1, 256: 1.0}
    keys = [RunKey(size, seed) for seed in range(3) for size in paces]
    ends = swept(keys, lambda key: falling(paces[key.batch_size] * (1 + 0.01 * key.seed)))
    stopped = [key for key, end in ends.items() if end.status == "stopped"]
    assert stopped == [RunKey(8, 1), RunKey(8, 2)]
    assert all(ends[key].reason.startswith("pruned: at ") for key in stopped)
    assert all(ends[key].seconds < 10 for key in stopped)
