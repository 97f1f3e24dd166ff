"""Memory of a process as its operating system counts it.

Imports the standard library only: the agent inside other people's Python loads this file by its
path, so it also runs on Python 3.9.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SELF = Path("/proc/self")
_LINUX = sys.platform.startswith("linux")


class ProcessMemory:
    """Resident and private memory of this process, in bytes above its baseline.

    *Private writable* memory (`VmData`) counts against `RLIMIT_DATA`. It exceeds resident memory by
    the pages that malloc holds untouched. Elsewhere than on Linux only resident memory is known.
    """

    def __init__(self) -> None:
        self._base_resident = 0
        self._base_private = 0
        self._virtual_before = 0

    def start(self) -> None:
        """Set the baseline."""
        self._base_resident = peak_resident() if os.name == "nt" else resident_bytes()
        self._base_private = private_bytes()

    @property
    def base_resident(self) -> int:
        """The resident memory of the baseline."""
        return self._base_resident

    def enforce(self, limit: int) -> bool:
        """Make allocations beyond `limit` bytes above the baseline fail; False if unsupported."""
        if not _LINUX:
            return False  # macOS accepts RLIMIT_DATA and RLIMIT_AS, but ignores both
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = self._base_private + limit
        if hard != resource.RLIM_INFINITY and wanted > hard:
            wanted = hard
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
        return True

    def lift(self) -> None:
        """Remove the limit of `enforce`."""
        if _LINUX:
            import resource

            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

    def move_base(self, resident: int, private: int) -> None:
        """Add to the baseline what does not belong to the workload, in bytes."""
        self._base_resident += max(resident, 0)
        self._base_private += max(private, 0)

    def reset_peak(self) -> None:
        """Start a new measurement."""
        if _LINUX:
            (_SELF / "clear_refs").write_text("5")  # 5: reset VmHWM, see proc(5)
            self._virtual_before = status("VmPeak")[0]

    def read(self) -> tuple[int, int]:
        """Return the resident and the private peak above the baseline."""
        resident = peak_resident() - self._base_resident
        private = _peak_private(self._virtual_before) - self._base_private
        return max(resident, 0), max(private, 0)


def field(text: str, key: str) -> int:
    """Return the bytes of the line `key:   123 kB` of a file in /proc; 0 if it is missing."""
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def status(*keys: str) -> list[int]:
    """Return fields of `/proc/self/status`, in bytes."""
    text = (_SELF / "status").read_text()
    return [field(text, key) for key in keys]


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    if _LINUX:
        return status("VmRSS")[0]
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except ImportError:  # in other people's Python
        return peak_resident()


def private_bytes() -> int:
    """Return the private writable memory of this process; resident memory where it is unknown."""
    return status("VmData")[0] if _LINUX else resident_bytes()


def peak_resident() -> int:
    """Return the peak of the resident memory of this process."""
    if _LINUX:
        return status("VmHWM")[0]
    if os.name == "nt":
        return _peak_working_set()
    import resource

    # Bytes on macOS, never reset: correct for increasing batch sizes, the order in a probe.
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def own_bytes(pid: int) -> int:
    """Return the private pages of another process and its share of shared memory; 0 if it ended.

    Pages that it inherited at fork are shared with its parent, and counted there.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(field(text, key) for key in ("Private_Clean", "Private_Dirty", "Pss_Shmem"))


def _peak_private(virtual_before: int) -> int:
    """Return the peak of VmData, from the peak of all virtual memory (VmPeak).

    The kernel records no peak of VmData. Other mappings (libraries, reserved address space) do
    not change during the steps, so VmPeak minus their size is the peak of the private part.
    Sampling VmData would miss buffers that live for less than a millisecond, which the limit
    counts.

    VmPeak cannot be reset. If it still equals `virtual_before`, an earlier peak hides this one;
    the estimate is then the resident peak plus the pages held untouched now.
    """
    if not _LINUX:
        return peak_resident()
    keys = ("VmPeak", "VmSize", "VmData", "VmHWM", "VmRSS")
    virtual_peak, virtual, private, resident_peak, resident = status(*keys)
    peak = virtual_peak - virtual + private
    if virtual_peak > virtual_before:
        return peak
    return min(peak, resident_peak - resident + private)


def _peak_working_set() -> int:
    """Return the peak working set of this process on Windows (GetProcessMemoryInfo)."""
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            *((f"other_{number}", ctypes.c_size_t) for number in range(7)),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    windows = ctypes.windll  # type: ignore[attr-defined,unused-ignore]
    windows.kernel32.GetCurrentProcess.restype = wintypes.HANDLE
    process = wintypes.HANDLE(windows.kernel32.GetCurrentProcess())
    windows.psapi.GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb)
    return int(counters.PeakWorkingSetSize)
