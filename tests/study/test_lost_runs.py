"""A run whose worker is lost is begun anew, written down as what it is, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from study_runs import plan_of

from rightbatch._study.records import Ended, Point, RunKey
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent
from rightbatch._study.sweep import TRIES, LostError, Stopped, Sweep

FINISHED = Ended("finished", "1 epochs", steps=3)
PLAN = plan_of(RunKey(8, 0))


class Log:
    def __init__(self, order: list[str], number: int) -> None:
        self.order, self.number = order, number
        self.seen: list[Point] = []
        self.end: Ended | None = None
        self.events: list[dict[str, Any]] = []

    def points(self, points: Sequence[Point]) -> None:
        self.seen += points

    def ended(self, ended: Ended, events: Sequence[dict[str, Any]]) -> None:
        self.order.append(f"log {self.number} ended")
        self.end, self.events = ended, list(events)


class Losing:
    """Loses a run so many times, each time after two points and an event."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.logs: list[Log] = []
        self.order: list[str] = []
        self.told: list[Ended] = []
        self.began_: list[RunKey] = []
        self.sweep: Sweep | None = None

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        for step in (1, 2):
            yield RunEvent(points=(Point(step, step, step, 0, {"loss": 1.0}, 0),))
        yield RunEvent(event={"steps": 2})
        if self.times:
            self.times -= 1
            raise LostError("its worker was lost after 2 steps")
        yield RunEvent(ended=FINISHED)

    def stop(self) -> None: ...

    def begin(self, plan: RunPlan) -> Log:
        self.logs.append(Log(self.order, len(self.logs)))
        self.order.append(f"log {len(self.logs) - 1} begun")
        return self.logs[-1]

    def began(self, key: RunKey) -> None:
        self.began_.append(key)

    def went(self, key: RunKey, points: Sequence[Point]) -> None: ...

    def ended(self, key: RunKey, ended: Ended) -> None:
        self.told.append(ended)


class Judge:
    def __init__(self) -> None:
        self.ends: list[Ended] = []

    def verdict(self, key: RunKey, points: Sequence[Point]) -> str | None: ...

    def ended(self, key: RunKey, ended: Ended) -> None:
        self.ends.append(ended)


def test_it_is_begun_anew_with_a_log_of_its_own() -> None:
    place, judge = Losing(2), Judge()
    sweep = Sweep(place, place.begin, place, judge=judge)
    assert sweep.run([PLAN]) == {PLAN.key: FINISHED}
    assert [log.end and log.end.status for log in place.logs] == ["stopped", "stopped", "finished"]
    reasons = [log.end and log.end.reason for log in place.logs[:2]]
    assert reasons == ["its worker was lost after 2 steps; trained again"] * 2
    assert all([point.steps for point in log.seen] == [1, 2] for log in place.logs)
    assert all(log.events == [{"steps": 2}] for log in place.logs)
    assert [ended.status for ended in judge.ends] == ["stopped", "stopped", "finished"]


def test_who_watches_sees_one_run_with_one_end() -> None:
    place = Losing(1)
    Sweep(place, place.begin, place).run([PLAN])
    assert place.began_ == [PLAN.key]
    assert place.told == [FINISHED]


def test_the_new_try_is_written_down_before_the_old_one_ends() -> None:
    # a sweep that is killed in between would else find the run ended
    place = Losing(1)
    Sweep(place, place.begin, place).run([PLAN])
    assert place.order == ["log 0 begun", "log 1 begun", "log 0 ended", "log 1 ended"]


def test_what_is_lost_again_and_again_has_failed() -> None:
    place = Losing(99)
    ended = Sweep(place, place.begin, place).run([PLAN])[PLAN.key]
    assert len(place.logs) == TRIES
    assert ended.status == "failed"
    assert ended.reason == "its worker was lost after 2 steps, as in the 2 attempts before"
    assert place.told == [ended]


def test_what_is_lost_because_the_sweep_was_stopped_is_not_begun_anew() -> None:
    class Stopping(Losing):
        def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
            sweep._stopped.set()
            raise LostError("all is down")
            yield

    place = Stopping(1)
    sweep = Sweep(place, place.begin, place)
    with pytest.raises(Stopped):
        sweep.train(PLAN)
    assert len(place.logs) == 1
    assert place.logs[0].end is None
