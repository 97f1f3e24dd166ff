"""The contract of a `FrameSource`, which `Feed` relies on."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rightbatch._serve.sources.frames import FrameSource

_PATIENCE = 20.0  # seconds; longer than a source's own timeouts


class FrameSourceContract:
    """Tests of a `FrameSource`. Subclass it with a fixture `source`.

    The fixture yields a new, unopened `FrameSource` with at least `frames` frames for every test,
    and closes it afterwards, which is part of the contract.
    """

    frames: ClassVar[int] = 3

    def test_whether_it_is_live_is_known_before_it_is_open(self, source: FrameSource) -> None:
        assert source.is_live in (True, False)

    def test_its_frames_are_contiguous_rgb_bytes(self, source: FrameSource) -> None:
        for image, _ in self._take(source):
            assert isinstance(image, np.ndarray)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.flags.c_contiguous

    def test_a_frame_is_no_other_frames_memory(self, source: FrameSource) -> None:
        taken = [image for image, _ in self._take(source)]
        before = [image.copy() for image in taken]
        taken[-1][:] = 255 - taken[-1]
        for image, copy in zip(taken[:-1], before[:-1], strict=True):
            assert np.array_equal(image, copy)
            assert not np.shares_memory(image, taken[-1])

    def test_it_says_when_each_was_captured_on_the_monotonic_clock(
        self, source: FrameSource
    ) -> None:
        began = time.monotonic()
        times = [captured for _, captured in self._take(source)]
        assert began <= min(times)
        assert max(times) <= time.monotonic()

    def test_what_is_not_live_ends_and_the_end_stays(self, source: FrameSource) -> None:
        if source.is_live:
            return
        source.open()
        count = 0
        while source.read() is not None:
            count += 1
        assert count >= self.frames
        assert source.read() is None

    def test_closing_before_it_is_open_and_twice_is_allowed(self, source: FrameSource) -> None:
        source.close()
        source.close()

    def test_it_closes_in_the_middle_and_twice(self, source: FrameSource) -> None:
        self._take(source)
        source.close()
        source.close()

    def test_closing_from_another_thread_waits_for_no_read_and_ends_the_reading(
        self, source: FrameSource
    ) -> None:
        source.open()
        source.read()
        over = threading.Event()

        def read() -> None:
            try:
                while source.read() is not None:
                    pass
            except Exception:
                pass  # `read` may raise when the source is closed
            over.set()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < _PATIENCE / 4
        assert over.wait(_PATIENCE), "`read` did not return after `close`"
        thread.join()

    def _take(self, source: FrameSource) -> list[tuple[NDArray[np.uint8], float]]:
        source.open()
        taken: list[tuple[NDArray[np.uint8], float]] = []
        while len(taken) < self.frames:
            found = source.read()
            assert found is not None, f"the source ended after {len(taken)} frames"
            taken.append(found)
        return taken
