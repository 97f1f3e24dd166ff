"""A probe: one measured run of a few steps at one size, in a process of its own."""

from __future__ import annotations

from rightbatch._worker.process import BuildError, ProbeProcess, Ready
from rightbatch._worker.records import Failure, Outcome, Probe
from rightbatch._worker.wire import Header, header_for, pickled

__all__ = [
    "BuildError",
    "Failure",
    "Header",
    "Outcome",
    "Probe",
    "ProbeProcess",
    "Ready",
    "header_for",
    "pickled",
]
