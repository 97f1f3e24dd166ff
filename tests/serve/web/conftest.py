"""A stand-in for `Server` with two sources, and its URL while it is served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from films import PATIENCE
from sites import StandIn, encoded, picture, site, source, stand_in


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(sources=[source("line1"), source("line2")]) as server:
        server.pictures["line1"] = encoded(picture(), "JPEG")
        yield server


@pytest.fixture
def url(server: StandIn) -> Iterator[str]:
    from rightbatch._serve.web.http import Limits

    limits = Limits(body_bytes=100_000, pixels=1_000_000, upload_seconds=PATIENCE)
    with site(server, limits=limits) as url:
        yield url
