"""CPU memory: resident and private memory of this process above its baseline.

*Resident* memory occupies RAM and counts against a container's limit. *Private writable* memory
(`VmData`) counts against `RLIMIT_DATA`, the only limit that Linux enforces on an unprivileged
process with an error that can be caught. It exceeds resident memory by the pages that malloc
holds untouched.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from rightbatch._device.base import Reading
from rightbatch._device.proc import ProcessMemory, own_bytes

_INTERVAL = 0.02  # seconds between two looks at the memory of children
_CGROUP_UNLIMITED = 2**60  # v1 writes 2**63 rounded down to a page where there is no limit


class CPU:
    """Memory of this process and its children (loader workers)."""

    name = "cpu"
    # What glibc's malloc holds depends on the timing of its threads; measured by benchmarks/fit.py.
    charge_variation = 0.015
    capability = None

    def __init__(self) -> None:
        self._own = ProcessMemory()
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
        self._own.start()

    def capacity(self) -> int:
        """Return what the machine and the cgroups leave, less the size of a second process."""
        # The next probe's process starts while this one runs, which hides its import time. Before
        # its workload starts it holds about as much as this one.
        return max(free_memory() - self._own.base_resident, 1)

    def enforce(self, limit: int) -> bool:
        return self._own.enforce(limit)

    def reset_peak(self) -> None:
        self._own.reset_peak()
        self._children.peak = 0

    def read(self) -> Reading:
        children = self._children.peak
        resident, private = (peak + children for peak in self._own.read())
        # RLIMIT_DATA does not count shared pages (the batches of loader workers); RAM does.
        return Reading(resident, max(resident, private), detail={"children_bytes": children})


def free_memory() -> int:
    """Return the bytes that the machine and the cgroups of this process leave."""
    import psutil

    return min(
        int(psutil.virtual_memory().available),
        cgroup_headroom(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
    )


class _ChildrenPeak:
    """Peak memory of this process' children (loader workers), sampled every 20 ms by a thread.

    The thread ends with this object: reading the memory of large children is not cheap.
    """

    def __init__(self) -> None:
        self.peak = 0

    def start(self) -> None:
        if Path("/proc/self/task").exists():
            arguments = (weakref.ref(self),)
            thread = threading.Thread(
                target=_sample_children, args=arguments, daemon=True, name="children's memory"
            )
            thread.start()


def _sample_children(reference: weakref.ref[_ChildrenPeak]) -> None:
    pause = threading.Event()
    while not pause.wait(_INTERVAL):
        total = sum(_own_bytes(child) for child in _children())
        found = reference()
        if found is None:
            return
        found.peak = max(found.peak, total)
        del found


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue  # the thread has ended
    return found


def _own_bytes(pid: int) -> int:
    """Return a child's `own_bytes`; 0 while it uses this process' address space.

    That is so between `vfork` and `exec`. Its pages then look private, and on a busy machine this
    lasts long enough to be sampled. Asked first: after `exec` a child never shares it again, while
    one that ends sharing during the look would be counted with this process' pages.
    """
    try:
        return 0 if _shares_address_space(pid) else own_bytes(pid)
    except OSError:
        return 0  # the child has ended


def _shares_address_space(pid: int) -> bool:
    # Only the size is compared: threads of this process touch pages between the two readings.
    sizes = [Path(f"/proc/{process}/statm").read_text().split()[0] for process in (pid, "self")]
    return sizes[0] == sizes[1]


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
