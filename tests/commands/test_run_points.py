"""The points of a run of a command, from messages that come late and from several ranks."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from rightbatch._noise import Observations
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import Point
from rightbatch.integrations.command.command_output import OutputNumbers
from rightbatch.integrations.command.observed import Observed
from rightbatch.integrations.command.run_points import RunPoints

COVERAGE = {"evaluated": False, "saved": False, "epoch": 64, "fixed": 0}


class Run:
    """A run whose agents send what a test says."""

    def __init__(self, world: int = 1, batch_size: int = 8) -> None:
        self.observed, self.points = Observed(), RunPoints(batch_size)
        for rank in range(world):
            about = {"event": "hello", "pid": rank + 1, "rank": rank, "world_size": world}
            self.send(about)
            self.send({"event": "training", "pid": rank + 1, "world": world})

    def send(self, message: dict[str, Any]) -> None:
        self.observed.add(message)
        self.points.add(message)

    def steps(
        self,
        *numbers: int,
        pid: int = 1,
        losses: list[tuple[int, float]] | None = None,
        examples: int | None = 8,
        seconds: float = 0.1,
    ) -> None:
        if losses is None:
            losses = [(number - 1, 1 / number) for number in numbers]
        step = {"seconds": seconds, "waited": 0.0, "examples": examples, "micro_batches": 1}
        now = time.monotonic()
        ends = [now - seconds * (len(numbers) - at) for at in range(1, len(numbers) + 1)]
        steps = [
            {"number": number, "ended_at": end, **step}
            for number, end in zip(numbers, ends, strict=True)
        ]
        self.send({"event": "steps", "pid": pid, "steps": steps, "losses": losses, **COVERAGE})

    def take(self, is_over: bool = False) -> list[Point]:
        return list(self.points.take(self.observed, is_over))


def test_points_have_the_steps_examples_and_seconds_of_the_training() -> None:
    run = Run()
    run.steps(1, 2, 3)
    points = run.take()
    assert [point.steps for point in points] == [1, 2, 3]
    assert [point.examples for point in points] == [8, 16, 24]
    assert [point.seconds for point in points] == pytest.approx([0.1, 0.2, 0.3])
    assert [point.epochs for point in points] == [8 / 64, 16 / 64, 24 / 64]
    assert [point.values["loss"] for point in points] == [1, 1 / 2, 1 / 3]


def test_the_start_of_the_command_is_no_part_of_the_first_step() -> None:
    run = Run()
    run.steps(1, seconds=20.0)
    assert run.take() == []  # the second step tells how long one takes
    run.steps(2)
    assert [point.seconds for point in run.take()] == pytest.approx([0.1, 0.2])


def test_losses_of_micro_batches_and_of_the_steps_between_two_points_are_averaged() -> None:
    run = Run()
    numbers = range(1, 301)
    run.steps(*numbers, losses=[(n - 1, loss) for n in numbers for loss in (n, n + 1.0)])
    points = run.take(is_over=True)
    assert points[-1].steps == 300 and len(points) < 200
    before = 0
    for point in points:
        part = [n + 0.5 for n in range(before + 1, point.steps + 1)]
        assert point.values["loss"] == statistics.fmean(part)
        if len(part) > 1:
            assert point.values["loss_spread"] == pytest.approx(statistics.stdev(part))
        before = point.steps


def test_a_point_waits_for_its_loss_which_a_device_delivers_late() -> None:
    run = Run()
    run.steps(1, 2, losses=[])
    assert run.take() == []
    run.steps(3, losses=[(0, 3.0), (1, 2.0)])
    assert [(p.steps, p.values["loss"]) for p in run.take()] == [(1, 3.0), (2, 2.0)]
    assert [(p.steps, p.values) for p in run.take(is_over=True)] == [(3, {})]


def test_a_training_without_a_loss_that_can_be_seen_has_points_all_the_same() -> None:
    run = Run()
    run.steps(*range(1, 201), losses=[])
    steps = [point.steps for point in run.take()]
    assert steps[0] == 1 and 95 <= steps[-1] <= 100


def test_ranks_add_their_examples_and_average_their_losses() -> None:
    run = Run(world=2)
    run.steps(1, 2, 3, losses=[(0, 1.0), (1, 1.0), (2, 1.0)])
    assert run.take() == []  # the other rank has not reported
    run.steps(1, 2, pid=2, losses=[(0, 3.0), (1, 5.0)])
    points = run.take()
    assert [point.examples for point in points] == [16, 32]
    assert [point.values["loss"] for point in points] == [2.0, 3.0]
    run.observed.add({"event": "closed", "pid": 2})
    assert [point.steps for point in run.take()] == [3]


def test_a_batch_that_was_not_seen_is_as_large_as_it_was_asked_for() -> None:
    run = Run(batch_size=48)
    run.steps(1, 2, examples=None)
    assert [point.examples for point in run.take()] == [48, 96]


def test_a_number_belongs_to_the_step_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    run = Run()
    run.steps(1, 2)  # ended at 99.9 and 100.0
    now = 100.25
    run.points.number("accuracy", 0.5)
    now = 100.41
    run.steps(3, 4, 5, 6)  # at 100.1, …, 100.4
    now = 103.0
    run.points.number("accuracy", 0.7)
    run.steps(7)  # the message of a process that ends: its step ended at 100.51
    points = run.take(is_over=True)
    found = [(p.steps, p.values["accuracy"]) for p in points if "accuracy" in p.values]
    assert found == [(4, 0.5), (7, 0.7)]


@pytest.mark.parametrize(("ranks", "whole"), [(1, 20.0), (2, 9.0)])
def test_the_noise_of_a_sampled_update_is_that_of_its_micro_batches(
    ranks: int, whole: float
) -> None:
    """As `rightbatch.NoiseScale` has it, for a loop that divides its losses, and for DDP."""
    run = Run(world=ranks)
    parts = [(4.0, 8), (5.0, 8), (3.0, 4), (6.0, 8)]
    each = len(parts) // ranks
    for rank in range(ranks):
        mine = parts[rank * each : (rank + 1) * each]
        run.send({"event": "noise", "pid": rank + 1, "update": 1, "whole": whole, "parts": mine})
        run.steps(1, 2, pid=rank + 1)
    (found,) = [point for point in run.take() if "noise_scale" in point.values]
    oracle = Observations(9, "examples", (), 0)
    weight = 1 / len(parts)  # of a micro-batch's mean gradient in the whole one
    share = 1 / ranks  # of what a rank computes
    oracle.add(
        whole=whole,
        single=share**2 * sum(square for square, _ in parts),
        weights=1.0,
        squared=len(parts) * weight**2,
        spread=sum(weight**2 / size for _, size in parts),
        population=None,
    )
    ((squared, variance),) = oracle.pairs
    assert found.steps == 2
    assert found.values["gradient_squared"] == pytest.approx(squared)
    assert found.values["gradient_variance"] == pytest.approx(variance)
    assert found.values["noise_scale"] == pytest.approx(variance / squared)


def numbers_of(path: Path, *metrics: str) -> OutputNumbers:
    return OutputNumbers(path, StudyOptions(batches=(8,), out="s", metrics=metrics).metric_patterns)


def test_numbers_are_read_from_lines_as_they_are_completed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    numbers = numbers_of(
        path, r"accuracy=acc: (\S+)", r"rank=(?:top|rank) (?P<value>\d+)", "no=(x)"
    )
    with path.open("a") as file:

        def write(text: str) -> list[tuple[str, float]]:
            file.write(text)
            file.flush()
            return list(numbers.read())

        assert write("acc: 0.") == []
        assert write("5\nnothing\racc: 7e-1 top 3\n") == [
            ("accuracy", 0.5),
            ("accuracy", 0.7),
            ("rank", 3.0),
        ]
        assert write("acc: 1") == []
    assert list(numbers.read(is_over=True)) == [("accuracy", 1.0)]
    assert numbers.missing == {"no"}


def test_a_match_that_is_no_number_is_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("accuracy: n/a\naccuracy: 0.5\n")
    numbers = numbers_of(path, r"accuracy=accuracy: (.+)")
    assert list(numbers.read()) == [("accuracy", 0.5)]
    assert numbers.not_numbers == {"accuracy": ["n/a"]}
