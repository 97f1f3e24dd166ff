"""The contract of frame sources notices what it is for: one broken source for each promise."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from rightbatch.testing import FrameSourceContract, _frame_source


class Ideal:
    """Three frames."""

    is_live: Any = False

    def __init__(self) -> None:
        self.left = 3
        self.is_open = self.is_closed = False

    def open(self) -> None:
        self.is_open = True

    def read(self) -> Any:
        assert self.is_open
        if self.is_closed or not self.left:
            return None
        self.left -= 1
        return self.image(), self.now()

    def image(self) -> np.ndarray:
        return np.zeros((4, 8, 3), np.uint8)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self.is_closed = True


class TestTheIdealSource(FrameSourceContract):
    @pytest.fixture
    def source(self) -> Any:
        return Ideal()


class NotKnown(Ideal):
    is_live = None


class Floating(Ideal):
    def image(self) -> np.ndarray:
        return np.zeros((4, 8, 3), np.float32)


class Grey(Ideal):
    def image(self) -> np.ndarray:
        return np.zeros((4, 8), np.uint8)


class Mirrored(Ideal):
    def image(self) -> np.ndarray:
        return np.zeros((4, 8, 3), np.uint8)[:, ::-1]


class OneBuffer(Ideal):
    buffer = np.zeros((4, 8, 3), np.uint8)

    def image(self) -> np.ndarray:
        return self.buffer


class WallClock(Ideal):
    def now(self) -> float:
        return time.time()


class Short(Ideal):
    def __init__(self) -> None:
        super().__init__()
        self.left = 2


class StartsAgain(Ideal):
    def read(self) -> Any:
        found = super().read()
        if found is None and not self.is_closed:
            self.left = 3
        return found


class ClosesOnce(Ideal):
    def close(self) -> None:
        assert not self.is_closed
        super().close()


class ClosesOnlyWhatIsOpen(Ideal):
    def close(self) -> None:
        assert self.is_open
        super().close()


class ReadsOn(Ideal):
    """Closing does not reach a read that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def read(self) -> Any:
        if self.left == 1:
            self.released.wait()
        return super().read()


class WaitsForARead(Ideal):
    def close(self) -> None:
        time.sleep(PATIENCE / 2)
        super().close()


PATIENCE = 0.5


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (NotKnown, "test_whether_it_is_live_is_known_before_it_is_open"),
        (Floating, "test_its_frames_are_contiguous_rgb_bytes"),
        (Grey, "test_its_frames_are_contiguous_rgb_bytes"),
        (Mirrored, "test_its_frames_are_contiguous_rgb_bytes"),
        (OneBuffer, "test_a_frame_is_no_other_frames_memory"),
        (WallClock, "test_it_says_when_each_was_captured_on_the_monotonic_clock"),
        (Short, "test_its_frames_are_contiguous_rgb_bytes"),
        (Short, "test_what_is_not_live_ends_and_the_end_stays"),
        (StartsAgain, "test_what_is_not_live_ends_and_the_end_stays"),
        (ClosesOnce, "test_closing_before_it_is_open_and_twice_is_allowed"),
        (ClosesOnce, "test_it_closes_in_the_middle_and_twice"),
        (ClosesOnlyWhatIsOpen, "test_closing_before_it_is_open_and_twice_is_allowed"),
        (ReadsOn, "test_closing_from_another_thread_waits_for_no_read_and_ends_the_reading"),
        (WaitsForARead, "test_closing_from_another_thread_waits_for_no_read_and_ends_the_reading"),
    ],
)
def test_a_source_that_breaks_a_promise_fails_the_contract(
    kind: type[Ideal], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_frame_source, "_PATIENCE", PATIENCE)
    source = kind()
    try:
        with pytest.raises(AssertionError):
            getattr(TestTheIdealSource(), test)(source)
    finally:
        if isinstance(source, ReadsOn):
            source.released.set()
