"""A pilot: a short real training of a copy, in a probe's process."""

from __future__ import annotations

from rightbatch._pilot.pilot import Part, Pilot, PilotPlan, PilotReport, facts

__all__ = ["Part", "Pilot", "PilotPlan", "PilotReport", "facts"]
