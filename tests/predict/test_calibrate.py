"""Calibration with a scripted GPU: stored values, and their use in predictions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import rightbatch as rb
from rightbatch._predict.calibrate import Calibration, calibrate, calibrated
from rightbatch._predict.overhead import CONTEXT, process_overhead

MIB = 2**20
# Two processes share 1000 MiB: each context takes 300, and 40 more once kernels are loaded.
GPU = """
import json, sys
from pathlib import Path
opened = Path(sys.argv[1])
for line in sys.stdin:
    answer = {"gpu": "Test GPU", "capability": 8.9}
    if line.strip() != "who":
        if not getattr(sys, "touched", False):
            sys.touched = True
            opened.write_text(opened.read_text() + "x")
        answer = {"free": (1000 - 300 * len(opened.read_text())) * 2**20}
    if line.strip() == "load":
        answer = {"free": answer["free"] - (40 + 20) * 2**20, "reserved": 20 * 2**20}
        answer["cublas"] = 8 * 2**20
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path


def a_gpu(folder: Path) -> list[str]:
    (folder / "opened").write_text("")
    return [sys.executable, "-c", GPU, str(folder / "opened")]


def test_a_context_is_what_a_second_process_takes_and_is_kept(cache: Path) -> None:
    found = calibrate(a_gpu(cache))
    version = ".".join(torch.__version__.split(".")[:2])
    assert found == Calibration("Test GPU", 8.9, version, 300 * MIB, 340 * MIB, 8 * MIB)
    assert calibrated(8.9) == found
    assert calibrated(9.0) is None, "another architecture is another matter"


def test_what_was_measured_takes_the_place_of_the_table(cache: Path) -> None:
    assert process_overhead(8.9, (), 0, 0, 1, calibrated(8.9)).context == CONTEXT
    calibrate(a_gpu(cache))
    beside = process_overhead(8.9, (), 0, 0, 1, calibrated(8.9))
    assert (beside.low, beside.high, beside.cublas) == (300 * MIB, 340 * MIB, 8 * MIB)
    assert "as measured: Test GPU" in beside.notes[0]


def test_a_damaged_file_counts_as_none(cache: Path) -> None:
    calibrate(a_gpu(cache))
    (file,) = (cache / "cache").rglob("*.json")
    file.write_text("{")
    assert calibrated(8.9) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure here")
def test_without_a_gpu_it_says_where_to_run_it(cache: Path) -> None:
    with pytest.raises(rb.UsageError, match="there is none; run it where the GPU is"):
        calibrate()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_gpu_that_is_here_is_measured(cache: Path) -> None:
    found = calibrate()
    assert 100 * MIB < found.context_low_bytes <= found.context_high_bytes < 2000 * MIB
    assert found.cublas_bytes in (8_519_680, 32 * MIB)


def test_figures_are_kept_where_windows_keeps_caches(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(cache / "local"))
    found = calibrate(a_gpu(cache))
    assert (cache / "local" / "rightbatch" / "calibrations.json").is_file()
    assert calibrated(8.9) == found


def test_a_process_that_is_gone_before_it_is_asked_is_an_error_of_its_own(cache: Path) -> None:
    with pytest.raises(rb.WorkloadError, match="no driver"):
        calibrate([sys.executable, "-c", "import os; os.close(0); raise SystemExit('no driver')"])


def test_a_calibration_says_its_figures_in_words(cache: Path) -> None:
    text = str(calibrate(a_gpu(cache)))
    assert "Test GPU" in text
    assert "context 300 MiB to 340 MiB, cuBLAS workspace 8.00 MiB per thread" in text


def test_a_process_that_dies_is_an_error_of_its_own(cache: Path) -> None:
    with pytest.raises(rb.WorkloadError, match="out of luck"):
        calibrate([sys.executable, "-c", "raise SystemExit('out of luck')"])
