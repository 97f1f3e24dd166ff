"""Feeds that soon try again, of which nothing is left after a test, and a taker of frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from films import PATIENCE, wait_for
from scripted_sources import Taker

from rightbatch._serve.sources.feed import Feed
from rightbatch._serve.sources.frames import Frame, SourceSpec

QUICK: dict[str, Any] = {
    # A machine may be slow for seconds: tests of sources that stall pass shorter times.
    "open_timeout": PATIENCE / 2,
    "stall_after": PATIENCE / 2,
    "first_retry": 0.02,
    "last_retry": 0.05,
}


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def feeds() -> Iterator[Callable[..., Feed]]:
    """Starts feeds, and sees to it that nothing of them is left."""
    before = set(threading.enumerate())
    started: list[Feed] = []

    def start(spec: SourceSpec, deliver: Callable[[Frame], None], **options: Any) -> Feed:
        feed = Feed(spec, deliver, **QUICK | options)
        started.append(feed)
        feed.start()
        return feed

    yield start
    for feed in started:
        feed.stop(0)
    for feed in started:
        feed.stop(PATIENCE)
        assert feed.status().state in ("stopped", "ended", "failed")
    wait_for(lambda: set(threading.enumerate()) <= before, "for threads to end")
