"""The process that `calibrate` asks, on a simulated GPU; and the whole calibration with two."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cuda_stand_in import MIB, StandIn
from rightbatch._predict import calibration_process
from rightbatch._predict.calibrate import calibrate


def answers(questions: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
    calibration_process.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_says_what_it_is_and_what_a_context_and_a_workspace_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandIn(4096 * MIB, context=300 * MIB, workspace=32 * MIB).entered() as gpu:
        who, free, loaded = answers("who\nfree\nload\n", monkeypatch, capsys)
        reserved = gpu.allocator.reserved
    assert who == {"gpu": "Test GPU", "capability": 9.0}
    assert free == {"free": (4096 - 300) * MIB}
    assert loaded["cublas"] == 32 * MIB
    assert 0 < loaded["reserved"] <= reserved + MIB * 100
    assert loaded["free"] == free["free"] - loaded["reserved"], "nothing else was loaded here"


def test_without_a_gpu_or_on_rocm_there_is_nothing_to_calibrate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandIn().entered():
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert answers("who\n", monkeypatch, capsys) == [{"gpu": None}]
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.version, "hip", None)
        assert answers("who\n", monkeypatch, capsys) == [{"gpu": None}]


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cuda_stand_in import MIB, StandIn
from rightbatch._predict import calibration_process

class Shared(StandIn):  # one GPU, whose contexts are lines of a file
    def touch(self):
        if not self.is_touched:
            with Path(sys.argv[2]).open("a") as file:
                file.write("context\\n")
        super().touch()

    @property
    def free(self):
        contexts = len(Path(sys.argv[2]).read_text().splitlines())
        self.others = (contexts - self.is_touched) * self.context
        return StandIn.free.fget(self)

gpu = Shared(4096 * MIB, context=300 * MIB, workspace=8_519_680, capability=(8, 6))
with gpu.entered():
    calibration_process.main()
"""


def test_two_processes_on_one_gpu_tell_the_size_of_a_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    contexts = tmp_path / "contexts"
    contexts.write_text("")
    tests = str(Path(__file__).parents[1])
    found = calibrate([sys.executable, "-c", PROCESS, tests, str(contexts)])
    assert contexts.read_text().count("context") == 2
    assert found.context_low_bytes == found.context_high_bytes == 300 * MIB
    assert (found.cublas_bytes, found.capability, found.gpu) == (8_519_680, 8.6, "Test GPU")
