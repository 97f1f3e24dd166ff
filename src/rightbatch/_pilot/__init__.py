"""A pilot: a short real training of a copy, in a probe's process."""

from __future__ import annotations

from rightbatch._pilot.pilot import Pilot, PilotPlan, PilotReport, facts

__all__ = ["Pilot", "PilotPlan", "PilotReport", "facts"]
