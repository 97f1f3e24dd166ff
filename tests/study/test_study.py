"""Whole studies of small workloads, as a person runs them: to the end, again, and cut off."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("mlflow")

import rightbatch as rb
from rightbatch._study.records import Run
from rightbatch._study.store.reader import Reader

WORKLOADS = Path(__file__).parent / "study_workloads.py"
PATIENCE = 240.0


def command(out: Path, function: str, *options: str) -> list[str]:
    told = [sys.executable, "-m", "rightbatch", "study", f"{WORKLOADS}:{function}"]
    return [*told, "--device", "cpu", "--micro-batch", "32", "--out", str(out), *options]


def rightbatch(out: Path, function: str, *options: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [*command(out, function, *options), "--json"], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def runs_in(out: Path) -> list[Run]:
    with Reader(out) as reader:
        return reader.runs()


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Batches of 24 fail, of 16 and 32 do not."""
    out = tmp_path_factory.mktemp("study") / "parts"
    options = ("--batches", "16,24,32", "--seeds", "1", "--epochs", "3", "--jobs", "2")
    code, told, said = rightbatch(out, "failing_at_24", *options)
    assert code == 3, said  # all runs of a size failed
    return out, told, said


def test_every_run_is_there_with_its_status_and_the_sweep_goes_on_after_a_failure(
    studied: tuple[Path, dict[str, Any], str],
) -> None:
    _, told, said = studied
    found = {run["batch_size"]: run for run in told["runs"]}
    assert {size: run["status"] for size, run in found.items()} == {
        16: "finished",
        24: "failed",
        32: "finished",
    }
    assert "24 is too much for me" in found[24]["reason"]
    assert found[16]["steps"] == 3 * 96 // 16
    assert set(found[16]["metrics"]) >= {"loss", "evaluation_loss"}
    assert "3 of 3: " in said
    first = told["summary"]["answer"]["sentences"][0]
    assert first.startswith("Batch size 24 failed in 1 of 1 runs: ") and "too much for me" in first


def test_the_first_run_is_at_the_base_size_and_its_noise_scale_sets_the_rates_of_the_others(
    studied: tuple[Path, dict[str, Any], str],
) -> None:
    """SGD's rate goes as 1/(1 + φ/B)."""
    out, told, _ = studied
    by_start = sorted(runs_in(out), key=lambda run: run.started)
    assert by_start[0].batch_size == 16
    decisions = next((out / "artifacts").glob("*/artifacts/decisions.json"))
    noise = float(json.loads(decisions.read_text())["noise_scale"])
    rates = {run["batch_size"]: run["learning_rate"] for run in told["runs"]}
    expected = 2.0 if noise == math.inf else (1 + noise / 16) / (1 + noise / 32)
    assert rates[16] == 0.05
    assert rates[32] == pytest.approx(0.05 * expected)


def test_the_same_command_trains_nothing_again_and_more_sizes_join(
    studied: tuple[Path, dict[str, Any], str],
) -> None:
    out, told, _ = studied
    before = {run.id for run in runs_in(out)}
    options = ("--batches", "16,32,64", "--seeds", "1", "--epochs", "3")
    code, again, said = rightbatch(out, "failing_at_24", *options)
    assert code == 3, said  # 24 is still part of the study
    after = runs_in(out)
    assert before < {run.id for run in after}
    assert [run.batch_size for run in after if run.id not in before] == [64]
    assert "2 of 3 runs were finished before" in said
    known = {run["name"]: run["metrics"] for run in told["runs"]}
    assert {run["name"]: run["metrics"] for run in again["runs"] if run["name"] in known} == known


def test_another_study_does_not_go_into_the_same_folder(
    studied: tuple[Path, dict[str, Any], str],
) -> None:
    with pytest.raises(rb.UsageError, match="epochs was 3, not 4; choose another --out"):
        rb.study(
            f"{WORKLOADS}:failing_at_24", batches=[24], epochs=4, out=studied[0], micro_batch=32
        )


def test_two_sweeps_do_not_train_in_one_folder(
    studied: tuple[Path, dict[str, Any], str],
) -> None:
    from filelock import FileLock

    with FileLock(studied[0] / "sweep.lock"), pytest.raises(rb.UsageError, match="another sweep"):
        rb.study(
            f"{WORKLOADS}:failing_at_24", batches=[24], epochs=3, out=studied[0], micro_batch=32
        )


def test_in_a_notebook_there_is_a_frame_and_a_figure(
    studied: tuple[Path, dict[str, Any], str],
) -> None:
    pytest.importorskip("plotly")
    result = rb.study(
        f"{WORKLOADS}:failing_at_24",
        batches=[16, 32],
        seeds=1,
        epochs=3,
        out=studied[0],
        micro_batch=32,
        progress=False,
    )
    frame = result.frame
    assert set(frame["batch_size"]) >= {16, 24, 32}
    assert frame.set_index("name").loc["batch 16, seed 0", "status"] == "finished"
    assert result.plot("evaluation_loss", "examples").data
    assert set(result.figures) == {"seconds", "steps", "examples", "cost"}
    assert result.figures["cost"].data
    assert str(result.out) in str(result)


def test_a_target_that_no_size_reaches_ends_with_1(tmp_path: Path) -> None:
    options = ("--batches", "16", "--seeds", "1", "--epochs", "1")
    code, told, _ = rightbatch(tmp_path, "regression", *options, "--target", "evaluation_loss=0")
    assert code == 1
    assert told["summary"]["answer"]["first"] == {"seconds": None, "steps": None, "examples": None}
    assert told["runs"][0]["status"] == "finished"


def test_a_workload_that_cannot_be_built_ends_with_3_and_its_own_error(tmp_path: Path) -> None:
    code, told, said = rightbatch(tmp_path, "broken", "--batches", "8,16", "--epochs", "1")
    assert code == 3
    assert told["error"] == {"type": "RuntimeError", "message": "there is no data here"}
    assert "there is no data here" in said


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_after_a_kill_the_same_command_goes_on_and_repeats_nothing_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, turns = tmp_path / "study", tmp_path / "turns"
    turns.mkdir()
    monkeypatch.setenv("RIGHTBATCH_TEST_TURNS", str(turns))  # the second run waits
    told = command(out, "in_turns", "--batches", "16", "--seeds", "2", "--epochs", "1")
    with subprocess.Popen(told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        try:
            until = time.monotonic() + PATIENCE
            while not _finished(out):
                assert time.monotonic() < until
                assert killed.poll() is None
                time.sleep(0.1)
        finally:
            killed.send_signal(signal.SIGKILL)
    done = {run.id: dict(run.metrics) for run in runs_in(out) if run.status == "finished"}
    assert len(done) == 1
    (turns / "go").touch()
    subprocess.run(told, check=True, capture_output=True)
    after = [run for run in runs_in(out) if run.status == "finished"]
    assert sorted(run.seed or 0 for run in after) == [0, 1]
    assert done.items() <= {run.id: dict(run.metrics) for run in after}.items()


@pytest.mark.skipif(os.name != "posix", reason="interrupts as POSIX does")
def test_ctrl_c_leaves_no_process_and_says_how_to_go_on(tmp_path: Path) -> None:
    told = command(tmp_path, "slow", "--batches", "16", "--seeds", "1", "--epochs", "1000")
    with subprocess.Popen(told, stderr=subprocess.PIPE, text=True) as interrupted:
        until = time.monotonic() + PATIENCE
        while not _trains(tmp_path):
            assert time.monotonic() < until
            assert interrupted.poll() is None
            time.sleep(0.1)
        children = psutil.Process(interrupted.pid).children(recursive=True)
        interrupted.send_signal(signal.SIGINT)
        _, said = interrupted.communicate(timeout=PATIENCE)
    assert interrupted.returncode == 130
    assert "the same command continues the study" in said
    assert "Traceback" not in said
    assert children
    until = time.monotonic() + 30  # they end with it, and someone else takes note of it
    while any(map(_is_there, children)):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [run.status for run in runs_in(tmp_path)] == ["stopped"]


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def _trains(out: Path) -> bool:
    try:
        return (out / "mlflow.db").exists() and any(run.curves for run in runs_in(out))
    except rb.RightbatchError:  # it is being made
        return False


def _finished(out: Path) -> bool:
    if not (out / "mlflow.db").exists():
        return False
    try:
        return any(run.status == "finished" for run in runs_in(out))
    except rb.RightbatchError:  # it is being made
        return False
