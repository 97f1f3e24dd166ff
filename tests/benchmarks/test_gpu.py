"""The run on a GPU, as far as it can be run without one."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import measure, nvidia
from benchmarks.gpu.fit import FINE, largest_surviving
from benchmarks.gpu.measure import peak
from benchmarks.gpu.parts import MOST_SECONDS, PARTS, Part
from benchmarks.gpu.recording import recording_of, start, stop, write
from benchmarks.gpu.runner import ROOT, run, slug
from benchmarks.gpu.workloads import CASES
from cuda_stand_in import MIB, StandIn
from rightbatch import replay

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and ends process groups")


def test_the_limits_of_all_parts_add_up_to_eight_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= MOST_SECONDS == 480


def test_the_eight_workloads_are_seven_of_ours_and_one_of_ultralytics() -> None:
    assert len(CASES) == 7
    assert all(len(set(case.sizes(tiny))) == 2 for case in CASES.values() for tiny in (0, 1))


# The runner


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a part of a function's body, which has `report`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RESULTS", str(tmp_path / "out" / "gpu-cpu.json"))

    def make(name: str, body: str, seconds: float = 30.0, requires: tuple[str, ...] = ()) -> Part:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / f"part_{name}.py").write_text(f"def run(report):\n{lines}\n")
        return Part(name, seconds, f"about {name}", ("json", *requires), module=f"part_{name}")

    return make


def results(folder: Path, parts: list[Part]) -> dict[str, Any]:
    written = run(parts, out=folder, device="cpu", tiny=True)
    assert written == folder / "gpu-cpu.json"
    document: dict[str, Any] = json.loads(written.read_text())
    return document


def test_a_part_that_fails_is_a_row_with_its_traceback_and_the_next_one_runs(
    tmp_path: Path, parts: Any
) -> None:
    broken = parts("broken", "report.row('before', 'kept')\nraise ValueError('out of luck')")
    fine = parts("fine", "report.row('what', 'found', 'goal', seconds=3)")
    found = results(tmp_path / "out", [broken, fine])["parts"]
    first, last = found["broken"]["rows"]
    assert first["found"] == "kept"
    assert "Traceback" in last["error"] and "ValueError: out of luck" in last["error"]
    assert found["broken"]["outcome"] == "failed with status 1"
    assert found["fine"]["rows"][0]["detail"] == {"seconds": 3}
    text = (tmp_path / "out" / "gpu-cpu.md").read_text()
    assert "| broken |  | failed: failed with status 1" in text
    assert "| what | goal | found |" in text


def test_what_fails_inside_a_part_is_a_row_and_the_part_goes_on(tmp_path: Path, parts: Any) -> None:
    body = "with report.measuring('one'):\n    1 / 0\nreport.row('two', 'found')"
    part = results(tmp_path / "out", [parts("half", body)])["parts"]["half"]
    one, two = part["rows"]
    assert "ZeroDivisionError" in one["error"]
    assert (two["found"], part["outcome"]) == ("found", "finished")


def test_a_part_that_takes_too_long_is_ended_with_its_children_and_keeps_its_rows(
    tmp_path: Path, parts: Any
) -> None:
    body = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
report.row('child', str(child.pid))
time.sleep(600)
"""
    slow = parts("slow", body.strip(), seconds=8.0)
    began = time.monotonic()
    found = results(tmp_path / "out", [slow, parts("fine", "report.row('a', 'b')")])["parts"]
    assert time.monotonic() - began < 100
    child, last = found["slow"]["rows"]
    assert found["slow"]["outcome"] == "timed out"
    assert "timed out after" in last["error"]
    assert found["fine"]["outcome"] == "finished"
    for _ in range(100):  # whoever inherits it needs a moment to reap it
        if not _is_alive(int(child["found"])):
            break
        time.sleep(0.1)
    assert not _is_alive(int(child["found"]))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_results_are_written_after_each_part_and_those_of_other_parts_are_kept(
    tmp_path: Path, parts: Any
) -> None:
    look = "import json, os\nfrom pathlib import Path\npath = Path(os.environ['RESULTS'])\n"
    look += "report.row('seen', ','.join(json.loads(path.read_text())['parts']))"
    one, two = parts("one", "report.row('a', 'b')"), parts("two", look)
    found = results(tmp_path / "out", [one, two])
    assert found["parts"]["two"]["rows"][0]["found"] == "one"
    again = results(tmp_path / "out", [parts("three", "report.row('c', 'd')")])
    assert list(again["parts"]) == ["one", "two", "three"]


def test_what_is_missing_is_skipped_by_name(tmp_path: Path, parts: Any) -> None:
    whole = parts("whole", "report.row('never', 'run')", requires=("no_such_thing",))
    piece = parts("piece", "assert not report.has('a piece', 'json', 'no_such_thing')")
    found = results(tmp_path / "out", [whole, piece])["parts"]
    for name in ("whole", "piece"):
        (row,) = found[name]["rows"]
        assert row["skipped"] == "not installed: no_such_thing"
    assert "skipped: not installed: no_such_thing" in (tmp_path / "out/gpu-cpu.md").read_text()


def test_files_of_a_part_lie_beside_its_results(tmp_path: Path, parts: Any) -> None:
    part = parts("filing", "(report.folder / 'a.json.gz').write_bytes(b'x')")
    results(tmp_path / "out", [part])
    assert (tmp_path / "out" / "gpu-cpu" / "a.json.gz").read_bytes() == b"x"


def test_names_of_gpus_become_names_of_files() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert slug("Tesla T4") == "tesla-t4"
    assert slug("") == "unknown"


def test_a_line_of_the_drivers_tool_is_understood() -> None:
    found = nvidia.parsed("NVIDIA H100 80GB HBM3, 570.86, 81559, 4, 81075, [N/A]\n")
    assert (found["name"], found["driver"]) == ("NVIDIA H100 80GB HBM3", "570.86")
    assert (found["total"], found["used"], found["free"]) == (81559 * MIB, 4 * MIB, 81075 * MIB)
    assert found["watts"] is None


# The edge


@pytest.mark.parametrize("seed", range(60))
def test_the_largest_size_that_survives_is_found_from_wherever_the_search_begins(seed: int) -> None:
    dice = random.Random(seed)
    edge = dice.choice([0, 1, 2, 5, 97, 1000, 4096])
    start_at = max(int(edge * dice.choice([0.3, 0.9, 1.0, 1.02, 1.5])), 1)
    trials: list[int] = []

    def survives(size: int) -> bool:
        trials.append(size)
        return size <= edge

    found, is_exact = largest_surviving(survives, min(start_at, 4096), 4096, lambda: True)
    assert is_exact
    assert found <= edge <= found + max(FINE * found, 1)
    assert max(trials) <= 4096 and len(trials) <= 30


def test_a_search_that_has_no_time_says_that_it_is_not_at_its_end() -> None:
    assert largest_surviving(lambda size: size <= 100, 50, 4096, lambda: False) == (50, False)


# Recordings


def replayed(path: Path) -> Any:
    found = replay(path)
    assert found.address_matches == found.allocations > 0
    assert found.segment_matches == found.segments
    return found


@pytest.mark.parametrize("is_late", [False, True])
def test_a_recording_of_a_training_replays_address_by_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Recorded from the first allocation on, or from the second step, with blocks in use."""
    path = tmp_path / "recording.json.gz"
    job = {"case": "3D U-Net fp32", "tiny": True, "device": "cuda", "batch": 2, "steps": 2}
    with StandIn(4096 * MIB, context=300 * MIB).entered() as gpu:
        monkeypatch.setattr(nvidia, "used_bytes", lambda: gpu.total - gpu.free)
        found = peak(job | {"record": str(path), "record_late": is_late})
    result = replayed(path)
    assert found["reserved"] == result.peak_reserved_bytes
    assert 0 < found["allocated"] <= found["reserved"]
    assert found["process"] == found["reserved"] + 300 * MIB


def test_what_was_there_when_a_recording_began_is_its_initial_state(tmp_path: Path) -> None:
    import torch

    with StandIn().entered() as gpu:
        kept = [torch.empty(n * MIB, dtype=torch.uint8, device="cuda") for n in (3, 30, 1)]
        del kept[0]
        before = start()
        kept.append(torch.empty(2 * MIB, dtype=torch.uint8, device="cuda"))
        gone = torch.empty(50 * MIB, dtype=torch.uint8, device="cuda")
        del gone
        torch.cuda.empty_cache()
        after = stop()
        assert gpu.history is None, "recording has ended"
        recording = recording_of(before, after, "a test")
        del kept
    assert [size for _, size in recording["initial"]["live"]] == [30 * MIB, MIB]
    kinds = "".join(kind for kind, _, _ in recording["events"])
    assert kinds == "asafS"
    write(recording, tmp_path / "recording.json.gz")
    assert replayed(tmp_path / "recording.json.gz").allocations == 2


def test_snapshots_without_addresses_of_blocks_and_with_other_devices_are_understood() -> None:
    """As torch wrote them before blocks had addresses, and on a machine with two GPUs."""
    blocks = [
        {"size": 512, "state": "active_pending_free", "requested_size": 100},
        {"size": 1024, "state": "inactive"},
        {"size": 2 * MIB - 1536, "state": "active_allocated", "requested_size": 7},
    ]
    mine = {"device": 1, "address": 4 * MIB, "total_size": 2 * MIB, "blocks": blocks}
    other = mine | {"device": 0, "address": 0}
    events = [
        {"action": "free_requested", "addr": 4 * MIB, "size": 100, "stream": 0},
        {"action": "free_completed", "addr": 4 * MIB, "size": 100, "stream": 0},
        {"action": "snapshot", "addr": 0, "size": 0, "stream": 0},
    ]
    before = {"segments": [other, mine]}
    after = before | {"device_traces": [[], events]}
    recording = recording_of(before, after, "a test", device=1)
    assert recording["initial"]["segments"] == [[4 * MIB, 2 * MIB]]
    assert recording["initial"]["live"] == [[4 * MIB, 512], [4 * MIB + 1536, 2 * MIB - 1536]]
    assert recording["events"] == [["f", 4 * MIB, 100]]


# Real steps


def test_jobs_run_in_processes_of_their_own_and_their_errors_are_told() -> None:
    job = {"case": "3D U-Net fp32", "tiny": True, "device": "cpu", "batch": 2, "steps": 1}
    with measure.Server() as server:
        assert server.run("survives", **job)["outcome"] == "ok"
        assert server.run("survives", **(job | {"limit": 20 * MIB, "batch": 512}))["outcome"] in (
            "out_of_memory",
            "killed",
        )
        assert server.run("peak", **job)["allocated"] > 0
        with pytest.raises(RuntimeError, match="no such case"):
            server.run("survives", **(job | {"case": "no such case"}))


def test_where_a_fork_comes_too_late_the_job_runs_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"kind": "survives", "case": "3D U-Net fp32", "tiny": True, "device": "cpu"}
    error = "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA ..."
    monkeypatch.setattr(measure, "_forked", lambda job: {"outcome": "failed", "error": error})
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job | {"batch": 2, "steps": 1})))
    monkeypatch.setattr(sys, "argv", ["measure"])
    measure.main()
    assert json.loads(capsys.readouterr().out) == {"outcome": "ok"}


# The whole


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_run_runs_every_part_and_leaves_nothing_in_the_results(tmp_path: Path) -> None:
    kept = ROOT / "benchmarks" / "results"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in kept.iterdir())
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path)]
    command += ["--seconds", "2400"]  # on a machine that may be busy
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(document["parts"]) == [part.name for part in PARTS]
    for name, part in document["parts"].items():
        assert part["outcome"] == "finished", (name, part["rows"][-1])
        assert part["rows"], name
        for row in part["rows"]:
            assert not row["error"], (name, row["what"], row["error"])
        assert any(row["found"] for row in part["rows"]), name
    assert sorted((path.name, path.stat().st_mtime_ns) for path in kept.iterdir()) == before
    assert "## predict" in done.stdout


def test_unknown_parts_are_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--parts", "fit,everything"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no part everything; there are environment, predict, fit" in done.stderr
