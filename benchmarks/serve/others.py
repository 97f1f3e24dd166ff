"""What other processes took of the machine while a benchmark ran."""

from __future__ import annotations

import contextlib
import time

import psutil

_GRAIN = 0.04  # seconds that the counters of several processes, in steps of 0.01, may be apart


class Others:
    """From its making on; `cores` is what was busy, less this process and all that it started."""

    def __init__(self) -> None:
        self._at, self._busy, self._own = time.monotonic(), _busy(), _own()

    def cores(self) -> float:
        elapsed = time.monotonic() - self._at
        used = _busy() - self._busy - (_own() - self._own) - _GRAIN
        return max(0.0, used / elapsed)


def wait_for_quiet(cores: float, patience: float) -> None:
    """Until others took no more than so many cores for a second; so many seconds, at most."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        others = Others()
        time.sleep(1.0)
        if others.cores() <= cores:
            return


def _busy() -> float:
    """Seconds of all cores together, since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times[:3]) + sum(getattr(times, kind, 0.0) for kind in ("irq", "softirq")))


def _own() -> float:
    """Seconds of this process and of its children, those that have ended among them."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
