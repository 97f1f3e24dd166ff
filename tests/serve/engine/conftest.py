"""Batchers whose calibration costs nothing, closed at the end of each test."""

from __future__ import annotations

import pytest
from films import PATIENCE
from gated_models import LONG, Gated

from rightbatch._serve.engine import calibration as calibrate
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.calibration import Calibration


@pytest.fixture
def quick_conclusion(monkeypatch):
    """What a calibration promises takes a second to work out; few of these tests ask for it."""

    def estimate_capacity(samples, stopped_by, latency, **options):
        return Calibration(latency, samples, stopped_by, max(samples), 1.0, 1.0, 0, 10.0, 0.0)

    monkeypatch.setattr(calibrate, "estimate_capacity", estimate_capacity)


@pytest.fixture
def calibrated(monkeypatch, quick_conclusion):
    """Makes every calibration find these seconds, at once."""

    def found(samples):
        def measure(function, item, latency, **options):
            return {size: [seconds] * 3 for size, seconds in samples.items()}, "latency"

        monkeypatch.setattr(calibrate, "measure", measure)

    found({size: 1e-3 * size + 4e-3 for size in (1, 2, 4, 8, 16, 32, 64)})
    return found


@pytest.fixture
def batcher_of(calibrated):
    """Makes batchers, calibrated, and closes them."""
    made = []

    def make(model, latency=LONG, **options):
        options.setdefault("calibrate_on", "first")
        made.append((model, Batcher(model, latency, **options)))
        return made[-1][1]

    yield make
    for model, batcher in made:
        if isinstance(model, Gated):
            model.go.set()
        batcher.close(PATIENCE)
