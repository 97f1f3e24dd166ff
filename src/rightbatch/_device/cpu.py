"""CPU memory: resident and private memory of this process above its baseline.

*Resident* memory occupies RAM and counts against a container's limit. *Private writable* memory
(`VmData`) counts against `RLIMIT_DATA`, the only limit that Linux enforces on an unprivileged
process with an error that can be caught. It exceeds resident memory by the pages that malloc
holds untouched.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from rightbatch._device.base import Reading

_PROC = Path("/proc/self")
_CGROUP_UNLIMITED = 2**60  # v1 writes 2**63 rounded down to a page where there is no limit


class CPU:
    """Memory of this process and its children (loader workers)."""

    name = "cpu"
    # What glibc's malloc holds depends on the timing of its threads; measured by benchmarks/fit.py.
    charge_variation = 0.015
    capability = None

    def __init__(self) -> None:
        self._base_resident = 0
        self._base_private = 0
        self._virtual_before = 0
        self._children = _ChildrenPeak()

    def prepare(self) -> None:
        """Start torch's thread pool and load its kernels, then set the baseline."""
        import torch

        # Otherwise the stacks of the pool's threads (8 MiB each, never touched) would be charged
        # to the workload: 0.5 GiB on a machine with 64 cores.
        x = torch.ones(256, 1024, requires_grad=True)
        (x @ x.T).sum().backward()
        del x
        self._children.start()  # before the baseline, which then includes this thread's stack
        self._base_resident = _resident()
        self._base_private = private_bytes()

    def capacity(self) -> int:
        """Return what the machine and the cgroups leave, less the size of a second process."""
        import psutil

        room = min(
            int(psutil.virtual_memory().available),
            cgroup_headroom(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
        )
        # The next probe's process starts while this one runs, which hides its import time. Before
        # its workload starts it holds about as much as this one.
        return max(room - self._base_resident, 1)

    def enforce(self, limit: int) -> bool:
        if not sys.platform.startswith("linux"):
            return False  # macOS accepts RLIMIT_DATA and RLIMIT_AS, but ignores both
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = self._base_private + limit
        if hard != resource.RLIM_INFINITY and wanted > hard:
            wanted = hard
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
        return True

    def reset_peak(self) -> None:
        if sys.platform.startswith("linux"):
            (_PROC / "clear_refs").write_text("5")  # 5: reset VmHWM, see proc(5)
            self._virtual_before = _status("VmPeak")[0]
        self._children.peak = 0

    def read(self) -> Reading:
        children = self._children.peak
        resident = _peak_resident() - self._base_resident + children
        private = _peak_private(self._virtual_before) - self._base_private + children
        resident, private = max(resident, 0), max(private, 0)
        # RLIMIT_DATA does not count shared pages (the batches of loader workers); RAM does.
        return Reading(resident, max(resident, private), detail={"children_bytes": children})


class _ChildrenPeak:
    """Peak memory of this process' children (loader workers), sampled every `interval` seconds."""

    def __init__(self, interval: float = 0.02) -> None:
        self.peak = 0
        self._interval = interval

    def start(self) -> None:
        if Path("/proc/self/task").exists():
            threading.Thread(target=self._sample, daemon=True, name="children's memory").start()

    def _sample(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._interval):
            self.peak = max(self.peak, sum(_own_bytes(child) for child in _children()))


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue  # the thread has ended
    return found


def _own_bytes(pid: int) -> int:
    """Return a child's private pages plus its share of batches in shared memory.

    Pages inherited at fork are shared with the parent and counted there.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        if _shares_address_space(pid):
            return 0
    except OSError:
        return 0  # the child has ended
    return sum(_field(text, key) for key in ("Private_Clean", "Private_Dirty", "Pss_Shmem"))


def _shares_address_space(pid: int) -> bool:
    """Return whether a child uses this process' address space, as between `vfork` and `exec`.

    Its pages then look private. On a busy machine this lasts long enough to be sampled.
    """
    return Path(f"/proc/{pid}/statm").read_text() == (_PROC / "statm").read_text()


def _field(text: str, key: str) -> int:
    """Return the bytes of the line `key:   123 kB` of a file in /proc; 0 if it is missing."""
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _status(*keys: str) -> list[int]:
    text = (_PROC / "status").read_text()
    return [_field(text, key) for key in keys]


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def private_bytes() -> int:
    return _status("VmData")[0] if sys.platform.startswith("linux") else _resident()


def _peak_resident() -> int:
    if sys.platform.startswith("linux"):
        return _status("VmHWM")[0]
    if os.name == "nt":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Bytes on macOS, never reset: correct for increasing batch sizes, the order in a probe.
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _peak_private(virtual_before: int) -> int:
    """Return the peak of VmData, from the peak of all virtual memory (VmPeak).

    The kernel records no peak of VmData. Other mappings (libraries, reserved address space) do
    not change during the steps, so VmPeak minus their size is the peak of the private part.
    Sampling VmData would miss buffers that live for less than a millisecond, which the limit
    counts.

    VmPeak cannot be reset. If it still equals `virtual_before`, an earlier peak hides this one;
    the estimate is then the resident peak plus the pages held untouched now.
    """
    if not sys.platform.startswith("linux"):
        return _peak_resident()
    keys = ("VmPeak", "VmSize", "VmData", "VmHWM", "VmRSS")
    virtual_peak, virtual, private, resident_peak, resident = _status(*keys)
    peak = virtual_peak - virtual + private
    if virtual_peak > virtual_before:
        return peak
    return min(peak, resident_peak - resident + private)


def cgroup_headroom(mount: Path, membership: Path) -> int:
    """Return the bytes left under the tightest memory limit of this process' cgroups (v1, v2).

    `mount` is the mount point of the cgroups, `membership` the file that names this process'
    groups. Page cache that the kernel can reclaim counts as free. 2**60 without a limit.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return _CGROUP_UNLIMITED
    room = _CGROUP_UNLIMITED
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path can be the host's; the container's own group is the mount point.
        for folder in (group, *group.parents) if group.exists() else (root,):
            room = min(room, _group_headroom(folder, *names))
            if folder == root:
                break
    return room


def _group_headroom(folder: Path, limit: str, usage: str, reclaimable: str) -> int:
    try:
        text = (folder / limit).read_text().strip()
        if text == "max" or int(text) >= _CGROUP_UNLIMITED:
            return _CGROUP_UNLIMITED
        used = int((folder / usage).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(f"{reclaimable} "):
                used -= int(line.split()[1])
        return max(int(text) - used, 0)
    except OSError:
        return _CGROUP_UNLIMITED  # the root group does not have these files
