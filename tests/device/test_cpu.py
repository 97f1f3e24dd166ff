"""The CPU device: real measurements and limits, and cgroups simulated in folders."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch._device import Device
from rightbatch._device import cpu as cpu_module
from rightbatch._device.cpu import CPU, cgroup_headroom
from rightbatch.testing import DeviceContract

MIB = 2**20
UNLIMITED = 2**60
V1_UNLIMITED = 2**63 - 4096


class TestCPU(DeviceContract):
    @pytest.fixture
    def device(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
        """One that measures this test only: what others left in this process, which may be freed
        at any moment, and processes that others started do not count."""
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_DATA)
        children_of_all = cpu_module._children
        others = set(children_of_all()) if sys.platform.startswith("linux") else set()
        monkeypatch.setattr(
            cpu_module, "_children", lambda: [c for c in children_of_all() if c not in others]
        )
        gc.collect()
        gc.disable()
        yield CPU()
        gc.enable()
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_thread_that_samples_children_ends_with_its_device() -> None:
    cpu = CPU()
    before = set(threading.enumerate())
    cpu._children.start()
    started = set(threading.enumerate()) - before  # perhaps with one of something else
    [sampler] = [thread for thread in started if thread.name == "children's memory"]
    del cpu
    gc.collect()
    sampler.join(30)
    assert not sampler.is_alive()


def test_capacity_is_no_more_than_what_is_free(measured_cpu: dict[str, Any]) -> None:
    total = psutil.virtual_memory().total
    assert 100 * MIB < measured_cpu["capacity"] < total


def test_the_peak_is_that_of_a_known_allocation_and_not_what_is_left_of_it(
    measured_cpu: dict[str, Any],
) -> None:
    peak = pytest.approx(300 * MIB, rel=0.03)
    assert measured_cpu["transient"]["peak_bytes"] == peak
    assert measured_cpu["transient"]["charged_bytes"] == peak
    held = pytest.approx(100 * MIB, rel=0.03)
    assert measured_cpu["held"]["peak_bytes"] == held
    assert measured_cpu["held"]["charged_bytes"] == held


def test_a_peak_below_an_earlier_one_is_measured_too(measured_cpu: dict[str, Any]) -> None:
    reading = measured_cpu["below an earlier peak"]
    assert reading["peak_bytes"] == pytest.approx(150 * MIB, rel=0.03)
    assert reading["charged_bytes"] == pytest.approx(150 * MIB, rel=0.03)


def test_untouched_memory_is_charged_but_not_part_of_the_peak(
    measured_cpu: dict[str, Any],
) -> None:
    reading = measured_cpu["untouched"]
    assert reading["peak_bytes"] == pytest.approx(100 * MIB, rel=0.03)
    assert reading["charged_bytes"] == pytest.approx(600 * MIB, rel=0.03)


def test_memory_of_loader_workers_is_counted(measured_cpu: dict[str, Any]) -> None:
    assert measured_cpu["no worker"]["detail"]["children_bytes"] == 0
    children = measured_cpu["worker"]["detail"]["children_bytes"]
    assert 150 * MIB <= children <= 190 * MIB, "the worker's own, not what it inherited"
    assert measured_cpu["worker"]["peak_bytes"] >= children
    assert measured_cpu["worker"]["charged_bytes"] >= children


def test_an_enforced_limit_fails_at_the_limit_and_not_before(measured_cpu: dict[str, Any]) -> None:
    assert measured_cpu["enforced"] is True
    assert measured_cpu["filled"]["recognized"]
    assert 512 * MIB - 32 * MIB <= measured_cpu["grown"] <= 512 * MIB + 32 * MIB
    assert measured_cpu["after"] is None, "half of it can be had once what filled it is gone"


# cgroups


def v2(
    folder: Path,
    limit: int | str,
    used: int,
    inactive_file: int = 0,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    stat = f"anon 7\nfile 9\ninactive_anon 3\ninactive_file {inactive_file}\nactive_file 5\n"
    (folder / "memory.stat").write_text(stat)


def v1(folder: Path, limit: int, used: int, inactive_file: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    # `inactive_file` is the group's own, the total includes the groups inside it.
    stat = f"cache 1\ninactive_file 123456\ntotal_cache 1\ntotal_inactive_file {inactive_file}\n"
    (folder / "memory.stat").write_text(stat)


def membership(folder: Path, *lines: str) -> Path:
    file = folder / "cgroup"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_v2_leaves_the_limit_less_what_is_used(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v2(mount / "job", 1000 * MIB, 300 * MIB)
    assert cgroup_headroom(mount, membership(tmp_path, "0::/job")) == 700 * MIB


def test_v2_page_cache_that_can_be_given_back_counts_as_left(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v2(mount / "job", 1000 * MIB, 900 * MIB, inactive_file=500 * MIB)
    assert cgroup_headroom(mount, membership(tmp_path, "0::/job")) == 600 * MIB


def test_v2_without_a_limit_leaves_everything(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v2(mount / "job", "max", 300 * MIB)
    assert cgroup_headroom(mount, membership(tmp_path, "0::/job")) == UNLIMITED


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v2(mount / "job", 100 * MIB, 101 * MIB)
    assert cgroup_headroom(mount, membership(tmp_path, "0::/job")) == 0


def test_inside_a_container_the_mount_is_the_group_whatever_the_host_calls_it(
    tmp_path: Path,
) -> None:
    mount = tmp_path / "fs"
    v2(mount, 512 * MIB, 12 * MIB)
    path = "0::/kubepods.slice/pod1.slice/cri-containerd-abc.scope"
    assert cgroup_headroom(mount, membership(tmp_path, path)) == 500 * MIB
    v1(mount / "memory", 256 * MIB, 56 * MIB)
    lines = membership(tmp_path, "11:cpu,cpuacct:/docker/abc", "5:memory:/docker/abc")
    assert cgroup_headroom(mount, lines) == 200 * MIB


def test_v1_leaves_the_limit_less_what_cannot_be_given_back(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v1(mount / "memory" / "job", 1000 * MIB, 900 * MIB, inactive_file=100 * MIB)
    v1(mount / "memory", V1_UNLIMITED, 5000 * MIB)
    for line in ("4:memory:/job", "4:cpuset,memory:/job"):
        lines = membership(tmp_path, "9:name=systemd:/job", line, "1:cpu:/job", "0::/job")
        assert cgroup_headroom(mount, lines) == 200 * MIB


def test_v1s_unlimited_number_is_no_limit(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v1(mount / "memory" / "job", V1_UNLIMITED, 900 * MIB)
    assert cgroup_headroom(mount, membership(tmp_path, "4:memory:/job")) == UNLIMITED


def test_other_controllers_groups_do_not_limit_memory(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v1(mount / "memory" / "tight", 10 * MIB, 0)
    v1(mount / "memory" / "wide", 90 * MIB, 0)
    lines = membership(tmp_path, "7:cpu,cpuacct:/tight", "4:memory:/wide")
    assert cgroup_headroom(mount, lines) == 90 * MIB


def test_where_both_kinds_are_mounted_the_tighter_one_counts(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    v1(mount / "memory" / "job", 300 * MIB, 0)
    v2(mount / "job", 200 * MIB, 0)
    assert cgroup_headroom(mount, membership(tmp_path, "4:memory:/job", "0::/job")) == 200 * MIB


def test_a_system_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    assert cgroup_headroom(tmp_path, tmp_path / "nothing") == UNLIMITED
    assert cgroup_headroom(tmp_path / "none", membership(tmp_path, "0::/")) == UNLIMITED


groups = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 2**40)),
        st.integers(0, 2**40),
        st.integers(0, 2**30),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50)
@given(groups, st.booleans())
def test_of_nested_groups_the_tightest_counts(
    nested: list[tuple[int | None, int, int]], first_kind: bool
) -> None:
    left = [max(limit - used + file, 0) for limit, used, file in nested if limit is not None]
    with tempfile.TemporaryDirectory() as name:
        mount = Path(name) / "fs"
        folder = mount / "memory" if first_kind else mount
        folder.mkdir(parents=True)
        for depth, (limit, used, file) in enumerate(nested):
            folder = folder / f"level{depth}"
            if first_kind:
                v1(folder, V1_UNLIMITED if limit is None else limit, used, file)
            else:
                v2(folder, "max" if limit is None else limit, used, file)
        path = "/".join(f"level{depth}" for depth in range(len(nested)))
        line = f"4:memory:/{path}" if first_kind else f"0::/{path}"
        found = cgroup_headroom(mount, membership(Path(name), line))
    assert found == min([*left, UNLIMITED])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_child_that_still_has_its_parents_memory_adds_nothing() -> None:
    from rightbatch._device.cpu import _own_bytes, _shares_address_space

    assert _shares_address_space(os.getpid()), "as between vfork and exec"
    assert _own_bytes(os.getpid()) == 0
    code = "print('here', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline()
        assert not _shares_address_space(child.pid)
        assert _own_bytes(child.pid) > 0
        child.kill()
