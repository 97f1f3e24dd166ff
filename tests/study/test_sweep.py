"""Sweeps at places of our own making: order, several at a time, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from study_runs import plan_of

from rightbatch._errors import WorkloadError
from rightbatch._study.records import Ended, Point, RunKey
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent
from rightbatch._study.sweep import Sweep

PATIENCE = 60.0


def plans(*sizes: int) -> list[RunPlan]:
    return [plan_of(RunKey(size, 0)) for size in sizes]


def point(steps: int, **values: float) -> Point:
    return Point(steps, 8.0 * steps, 0.1 * steps, 0.5 * steps, values, 0.0)


def well(plan: RunPlan) -> Iterator[RunEvent]:
    yield RunEvent(points=(point(1, loss=2.0), point(2, loss=1.0)))
    yield RunEvent(event={"kind": "found"})
    yield RunEvent(points=(point(3, loss=0.5),))
    yield RunEvent(ended=Ended("finished", "1 epochs", steps=3))


class Somewhere:
    """A place that does as it is told, and counts."""

    jobs = 1

    def __init__(self, behaviour: Callable[[RunPlan], Iterator[RunEvent]] = well) -> None:
        self._behaviour = behaviour
        self._lock = threading.Lock()
        self.began: list[RunKey] = []
        self.at_once = self.most_at_once = 0
        self.is_stopped = threading.Event()

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        with self._lock:
            self.began.append(plan.key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield from self._behaviour(plan)
        finally:
            with self._lock:
                self.at_once -= 1

    def stop(self) -> None:
        self.is_stopped.set()


class Book:
    """Logs and a board: all that was written down."""

    def __init__(self) -> None:
        self.written: list[tuple[RunKey, str, Any]] = []

    def begin(self, plan: RunPlan) -> Book.Page:
        return Book.Page(self, plan.key)

    def began(self, key: RunKey) -> None:
        self.written.append((key, "began", None))

    def went(self, key: RunKey, points: Sequence[Point]) -> None:
        self.written.append((key, "went", len(points)))

    def ended(self, key: RunKey, ended: Ended) -> None:
        self.written.append((key, "shown", ended.status))

    class Page:
        def __init__(self, book: Book, key: RunKey) -> None:
            self._book, self._key = book, key

        def points(self, points: Sequence[Point]) -> None:
            self._book.written.append((self._key, "points", [p.steps for p in points]))

        def ended(self, ended: Ended, events: Sequence[dict[str, Any]]) -> None:
            self._book.written.append((self._key, "ended", (ended, list(events))))


def test_each_run_is_written_down_as_it_goes_and_its_end_last() -> None:
    book = Book()
    found = Sweep(Somewhere(), book.begin, book).run(plans(8))
    key = RunKey(8, 0)
    ended = Ended("finished", "1 epochs", steps=3)
    assert found == {key: ended}
    assert book.written == [
        (key, "began", None),
        (key, "points", [1, 2]),
        (key, "went", 2),
        (key, "points", [3]),
        (key, "went", 1),
        (key, "ended", (ended, [{"kind": "found"}])),
        (key, "shown", "finished"),
    ]


def test_runs_go_one_by_one_in_their_order_unless_more_are_asked_for() -> None:
    place, book = Somewhere(), Book()
    Sweep(place, book.begin, book).run(plans(16, 32, 8))
    assert [key.batch_size for key in place.began] == [16, 32, 8]
    assert place.most_at_once == 1


def test_as_many_runs_go_at_a_time_as_are_asked_for() -> None:
    together = threading.Barrier(3)

    def meeting(plan: RunPlan) -> Iterator[RunEvent]:
        together.wait(PATIENCE)  # only if three are there at once does any of them end
        yield from well(plan)

    place, book = Somewhere(meeting), Book()
    found = Sweep(place, book.begin, book, jobs=3).run(plans(1, 2, 3, 4, 5, 6))
    assert len(found) == 6
    assert place.most_at_once == 3


def test_whatever_becomes_of_a_run_is_its_result_and_the_others_go_on() -> None:
    ends = {
        8: Ended("out_of_memory", "no room"),
        16: Ended("diverged", "nan"),
        32: Ended("failed", "bug"),
        64: Ended("finished", "done"),
    }
    place = Somewhere(lambda plan: iter([RunEvent(ended=ends[plan.key.batch_size])]))
    book = Book()
    found = Sweep(place, book.begin, book).run(plans(8, 16, 32, 64))
    assert {key.batch_size: ended for key, ended in found.items()} == ends


def test_what_every_run_would_meet_ends_the_sweep() -> None:
    def broken(plan: RunPlan) -> Iterator[RunEvent]:
        raise WorkloadError("cannot be loaded", error_type="E", error_message="m")
        yield

    place, book = Somewhere(broken), Book()
    with pytest.raises(WorkloadError, match="cannot be loaded"):
        Sweep(place, book.begin, book).run(plans(8, 16))
    assert len(place.began) == 1
    assert place.is_stopped.is_set()
    assert not [what for _, what, _ in book.written if what == "ended"]


def test_an_interruption_ends_all_runs_and_none_counts_as_ended() -> None:
    place = Somewhere()

    def endless(plan: RunPlan) -> Iterator[RunEvent]:
        steps = 0
        while not place.is_stopped.wait(0.01):
            steps += 1
            yield RunEvent(points=(point(steps),))
        yield RunEvent(ended=Ended("failed", "killed"))

    place._behaviour = endless
    book = Book()

    def more() -> Iterator[RunPlan]:
        yield from plans(8, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(place, book.begin, book, jobs=3).run(more())
    assert not [what for _, what, _ in book.written if what == "ended"]
    assert place.at_once == 0


def test_a_judge_ends_a_run_without_hope_and_says_why() -> None:
    heard: list[tuple[int, str]] = []

    class Judge:
        def verdict(self, key: RunKey, points: Sequence[Point]) -> str | None:
            return "hopeless" if points[-1].steps >= 3 and key.batch_size == 16 else None

        def ended(self, key: RunKey, ended: Ended) -> None:
            heard.append((key.batch_size, ended.status))

    book, place = Book(), Somewhere()
    found = Sweep(place, book.begin, book, judge=Judge()).run(plans(8, 16))
    assert heard == [(8, "finished"), (16, "stopped")]
    by_size = {key.batch_size: ended for key, ended in found.items()}
    assert by_size[8].status == "finished"
    assert (by_size[16].status, by_size[16].reason) == ("stopped", "hopeless")
    assert by_size[16].steps == 3
    assert by_size[16].metrics == {"loss": 0.5}
    assert place.at_once == 0
