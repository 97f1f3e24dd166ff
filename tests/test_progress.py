"""Progress lines without a terminal: what a CI log receives."""

from __future__ import annotations

import re
import time

import pytest

from rightbatch import _progress
from rightbatch._progress import Live


@pytest.fixture
def interval(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds between two lines, short enough for a test."""
    monkeypatch.setattr(_progress, "_INTERVAL", 0.05)
    return 0.05


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """Return the lines on stderr once there are `count`, or those after ten seconds."""
    text, deadline = "", time.monotonic() + 10
    while text.count("\n") < count and time.monotonic() < deadline:
        time.sleep(0.01)
        text += capsys.readouterr().err
    return text.splitlines()


def test_the_latest_text_is_printed_again_and_again(
    capsys: pytest.CaptureFixture[str], interval: float
) -> None:
    with Live("fit") as live:
        live.show("batch size 8")
        live.show("batch size 16")
        capsys.readouterr()  # where this thread had to wait between the two
        wait_for_lines(capsys, 1)  # which may have begun before
        lines = wait_for_lines(capsys, 3)
    assert len(lines) >= 3
    assert all(re.fullmatch(r"fit: batch size 16 \(.+ s\)", line) for line in lines[:3])


def test_a_total_is_printed_as_a_percentage(
    capsys: pytest.CaptureFixture[str], interval: float
) -> None:
    with Live("train", total=20) as live:
        live.show("epoch 5", 5)
        line = wait_for_lines(capsys, 1)[0]
    assert line.startswith("train: epoch 5, 25% (")


def test_a_stage_is_printed_at_once_and_other_texts_at_intervals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_INTERVAL", 1000.0)
    with Live("predict") as live:
        live.stage("tracing a step")
        live.show("batch size 64")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["predict: tracing a step"]


def test_nothing_is_printed_where_progress_is_disabled(
    capsys: pytest.CaptureFixture[str], interval: float
) -> None:
    with Live("fit", enabled=False) as live:
        live.stage("batch size 8")
        time.sleep(3 * interval)
    assert capsys.readouterr().err == ""


def test_nothing_is_printed_after_the_end(
    capsys: pytest.CaptureFixture[str], interval: float
) -> None:
    with Live("fit") as live:
        live.show("batch size 8")
        wait_for_lines(capsys, 1)
    capsys.readouterr()
    time.sleep(3 * interval)
    assert capsys.readouterr().err == ""


def test_plain_lines_take_the_place_of_a_live_one_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, interval: float
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Live("rightbatch", plain=True) as live:
        live.show("batch 8")
        first, line, *_ = wait_for_lines(capsys, 1)
    # the carriage return, which also ends a line, puts it over a progress bar of the command
    assert (first, line[:24]) == ("", "\033[Krightbatch: batch 8 (")
