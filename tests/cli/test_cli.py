"""The command line as people and scripts meet it: another process, its streams, its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rightbatch._cli.app import app, join_dash, main

MIB = 2**20

COMMON = """
import os, subprocess, sys, time
import torch
from torch import nn
import rightbatch as rb

def made(model, **fields):
    known = {
        "loss": lambda model, batch: (model(batch[0]).squeeze(1) - batch[1]).square().mean(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "data": torch.utils.data.TensorDataset(torch.zeros(64, 16), torch.zeros(64)),
    }
    return rb.Workload(model=model, **(known | fields))
"""

GOOD = """
print("PRINTED by the file")

def loss(model, batch):
    print("PRINTED by the loss")
    os.write(1, b"PRINTED past Python\\n")
    subprocess.run([sys.executable, "-c", "print('PRINTED by a child')"])
    return (model(batch[0]).squeeze(1) - batch[1]).square().mean()

def workload():
    print("PRINTED by the factory", flush=True)
    return made(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1)), loss=loss)
"""

BROKEN = """
def workload():
    print("PRINTED by the factory")
    return made(nn.Sequential(nn.Linear(16, 8), nn.Linear(9, 1)))
"""

# 64 MiB of weights: they fit into 150 MiB, their gradients and AdamW's moments do not.
HEAVY = """
def workload():
    model = nn.Sequential(nn.Linear(16, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1))
    return made(model)
"""
HEAVY_WEIGHTS = 4 * (16 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 + 1)

# 512 GiB of weights, of which not the first can be had.
GIGANTIC = """
def workload():
    model = nn.Sequential(nn.Linear(16, 2**18), nn.Linear(2**18, 2**19), nn.Linear(2**19, 1))
    return made(model)
"""

ENDLESS = """
def loss(model, batch):
    open(os.environ["STARTED"], "w").close()
    time.sleep(600)

def workload():
    return made(nn.Linear(16, 1), loss=loss, workers=1)
"""

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux enforces a limit on the CPU"
)


class Place:
    """A folder with workload files, and one for temporary files that nothing may stay in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        files = {"good": GOOD, "broken": BROKEN, "heavy": HEAVY, "gigantic": GIGANTIC}
        for name, code in (files | {"endless": ENDLESS}).items():
            (folder / f"{name}.py").write_text(COMMON + code)

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rightbatch", *arguments],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.temporary), "COLUMNS": "200"} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests run in the background, their shell has made them deaf to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type]
        )

    def run(self, *arguments: str, **more: str) -> Done:
        process = self.start(*arguments, **more)
        stdout, stderr = process.communicate()
        return Done(process.returncode, stdout, stderr, [*self.temporary.glob("rightbatch*")])


class Done:
    """How a command ended, what it said, and what it left behind."""

    def __init__(self, code: int, stdout: str, stderr: str, left: list[Path]) -> None:
        self.code, self.stdout, self.stderr, self.left = code, stdout, stderr, left

    @property
    def document(self) -> Any:
        """Standard output, which is one JSON document and nothing else."""
        return json.loads(self.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("command"))


# Help and wrong use


VERBS = [name for name in app if not name.startswith("-")]
RunHere = Callable[..., Done]


@pytest.fixture
def run_here(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunHere:
    """Run a command that trains nothing in this process, which has imported torch already."""

    def run(*arguments: str) -> Done:
        monkeypatch.chdir(place.folder)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "path", [*sys.path])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capsys.readouterr(), left=[])

    return run


def test_help_lists_every_verb_with_what_it_does(place: Place) -> None:
    """In the order of `--help`, each at the beginning of a line and followed by a sentence."""
    done = place.run("--help")
    assert done.code == 0
    assert {"fit", "predict", "tune", "train", "study", "ui", "serve"} <= set(VERBS)
    listed = re.findall(r"^\W*([a-z]+) {2,}\w", done.stdout, re.MULTILINE)
    assert sorted(set(VERBS)) == sorted(set(listed) & set(VERBS))


@pytest.mark.parametrize("verb", [{"bench": "bench serve"}.get(verb, verb) for verb in VERBS])
def test_help_of_a_verb_shows_an_example_of_it(run_here: RunHere, verb: str) -> None:
    done = run_here(*verb.split(), "--help")
    assert done.code == 0
    assert f"Example: rightbatch {verb} " in done.stdout
    if verb not in ("ui", "report"):  # which run nothing
        assert "--memory" in done.stdout


def test_the_version_is_that_of_the_package(place: Place) -> None:
    import rightbatch

    assert place.run("--version").stdout.strip() == rightbatch.__version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "good.py:workload", "--memroy", "2GiB"), "--memroy"),
        (("fit",), "WORKLOAD"),
        (("fti", "good.py:workload"), "fti"),
        (("fit", "good.py:workload", "--max-batch", "many"), "many"),
        (("fit", "none.py:workload"), "there is no file none.py"),
        (("fit", "good.py"), "did you mean good.py:FUNCTION?"),
        (("fit", "good.py:workload", "--memory", "2 gigs"), "'2 gigs' is not a memory size"),
        (("fit", "good.py:workload", "--memory", "0"), "'0' is not a memory size"),
        (("fit", "good.py:workload", "--margin", "1.5"), "margin is a share"),
        (("fit", "good.py:workload", "--max-batch", "0"), "max_batch is at least 1"),
        (("fit", "good.py:workload", "--imgsz", "64"), "takes no options, got imgsz"),
        (("predict",), "predict takes a workload and --batch N, or --replay FILE"),
        (
            ("predict", "good.py:workload", "--batch", "4", "--gpu", "RTX 9999"),
            "nearest names",
        ),
        (("predict", "good.py:workload", "--batch", "0"), "batch is at least 1"),
        (
            ("predict", "good.py:workload", "--batch", "4", "--device", "mps"),
            "cuda only",
        ),
        (("predict", "--replay", "none.json.gz"), "there is no file none.json.gz"),
        (("train", "good.py:workload", "--epochs", "0"), "epochs is at least 1"),
        (("train", "good.py:workload", "--epochs", "1", "--batch", "many"), "batch is 'auto' or"),
        (("train", "good.py:workload", "--epochs", "1", "--resume"), "nothing to resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_use_exits_with_2_and_says_what_is_wrong(
    run_here: RunHere, arguments: tuple[str, ...], said: str
) -> None:
    done = run_here(*arguments, "--json")
    assert done.code == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "good.py:workload", "--memroy", "2GiB"), "--memroy"),
        (("fit", "good.py:workload", "--memory", "2 gigs"), "'2 gigs' is not a memory size"),
    ],
    ids=["the parser", "the verb"],
)
def test_wrong_use_in_a_process_of_its_own(
    place: Place, arguments: tuple[str, ...], said: str
) -> None:
    done = place.run(*arguments, "--json")
    assert (done.code, done.stdout, done.left) == (2, "", [])
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# What fits


@pytest.fixture(scope="module")
def fitted(place: Place) -> Done:
    arguments = ("--memory", "1GiB", "--max-batch", "4", "--margin", "0.1", "--json")
    return place.run("fit", "good.py:workload", "--device", "cpu", *arguments)


def test_a_fit_prints_one_document_with_the_contracts_fields(fitted: Done) -> None:
    assert fitted.code == 0, fitted.stderr
    document = fitted.document
    assert document["batch_size"] == 4
    assert document["smallest_batch_size"] == 1
    assert document["limit_bytes"] == 1024 * MIB
    assert document["limit_enforced"] is sys.platform.startswith("linux")
    assert 0 < document["peak_bytes"] <= 0.9 * 1024 * MIB
    assert document["evaluation_batch_size"] == 4
    assert document["examples"] == 64
    assert document["device"] == "cpu"
    assert document["margin"] == 0.1
    assert 0 < document["seconds"] < 300
    assert "max_batch" in document["reason"]


def test_every_probe_is_in_the_document(fitted: Done) -> None:
    document = fitted.document
    assert [probe["batch_size"] for probe in document["probes"]] == [1, 2, 4]
    for probe in document["probes"]:
        assert probe["outcome"] == "ok"
        assert probe["peak_bytes"] > 0
        assert probe["charged_bytes"] >= probe["peak_bytes"]
        assert 0 < probe["seconds"] < document["seconds"]
        assert probe["failure"] is None
    assert document["peak_bytes"] == document["probes"][-1]["peak_bytes"]


def test_what_the_workload_prints_does_not_spoil_the_document(fitted: Done) -> None:
    assert fitted.stdout.startswith("{")
    assert fitted.stdout.endswith("}\n")
    assert "PRINTED" not in fitted.stdout


def test_nothing_is_left_behind(fitted: Done) -> None:
    assert fitted.left == []


# What fails


def test_a_failure_of_the_workload_exits_with_3_and_its_own_traceback(place: Place) -> None:
    done = place.run("fit", "broken.py:workload", "--memory", "1GiB", "--json")
    assert done.code == 3
    document = done.document
    assert document["batch_size"] is None
    assert document["error"]["type"] == "RuntimeError"
    assert "shapes cannot be multiplied" in document["error"]["message"]
    assert "with an error other than out-of-memory" in document["reason"]
    # One example might have been one too few, or the loss might take groups; all sizes failed.
    assert [p["batch_size"] for p in document["probes"]][:2] == [1, 2]
    assert {p["outcome"] for p in document["probes"]} == {"failed"}
    assert "at batch size 2" in document["reason"]
    assert "Traceback (most recent call last)" in done.stderr
    assert "broken.py" in done.stderr, "the line that failed, not only the library's"
    assert "mat1 and mat2 shapes cannot be multiplied (2x8 and 9x1)" in done.stderr
    assert done.left == []


@linux_only
@pytest.mark.slow
def test_where_nothing_fits_it_exits_with_1_and_says_what_is_needed(place: Place) -> None:
    done = place.run("fit", "heavy.py:workload", "--memory", "150MiB", "--json")
    assert done.code == 1, done.stderr
    document = done.document
    assert document["batch_size"] is None
    assert document["error"]["type"]
    assert document["limit_bytes"] == 150 * MIB
    assert document["limit_enforced"] is True
    assert [probe["outcome"] for probe in document["probes"]] == ["out_of_memory"]
    # Weights, gradients, two moments, and AdamW's temporaries of a layer.
    assert document["needed_how"] == "measured"
    assert 4 * HEAVY_WEIGHTS <= document["needed_bytes"] <= 8 * HEAVY_WEIGHTS
    assert "one example needs" in document["reason"]
    assert document["reason"] in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.left == []


@linux_only
@pytest.mark.slow
def test_a_model_that_cannot_even_be_built_does_not_fit(place: Place) -> None:
    done = place.run("fit", "gigantic.py:workload", "--json")
    assert done.code == 1, done.stderr
    document = done.document
    assert document["batch_size"] is None
    assert document["probes"] == []
    weights = 4 * 2**37
    assert document["needed_bytes"] == pytest.approx(4 * weights, rel=0.8)
    assert document["needed_bytes"] >= 4 * weights
    assert document["needed_how"] == "fake"
    assert "nothing fits" in document["reason"]


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal here")
def test_an_interrupted_fit_exits_with_130_and_leaves_no_process_and_no_folder(
    place: Place,
) -> None:
    started = place.folder / "started"
    process = place.start(
        "fit", "endless.py:workload", "--memory", "1GiB", "--json", STARTED=str(started)
    )
    until = time.monotonic() + 300
    while not started.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2, "a probe, and the worker of its loader"
    assert list(place.temporary.glob("rightbatch*"))

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)

    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    assert list(place.temporary.glob("rightbatch*")) == []


# Prediction


def test_a_prediction_prints_one_document_with_the_contracts_fields(place: Place) -> None:
    done = place.run(
        *["predict", "good.py:workload", "--batch", "32", "--gpu", "T4", "--no-remedies", "--json"]
    )
    assert done.code == 0, done.stderr
    document = done.document
    assert document["batch_size"] == 32
    assert document["gpu"] == "T4"
    assert document["largest_batch_size"] == 64, "all the examples there are"
    assert set(document["process_bytes"]) == {"low", "high"}
    assert done.left == []


def test_a_prediction_of_a_broken_workload_exits_with_3_and_no_number(place: Place) -> None:
    done = place.run("predict", "broken.py:workload", "--batch", "4", "--json")
    assert done.code == 3
    assert done.document["batch_size"] is None
    assert "shapes cannot be multiplied" in done.document["error"]["message"]
    assert "Traceback" in done.stderr


def test_a_recording_is_replayed(place: Place) -> None:
    events = [["s", 2**32, 2**21], ["a", 2**32, 512], ["a", 2**32 + 512, 100], ["f", 2**32, 512]]
    (place.folder / "recorded.json").write_text(json.dumps({"events": events}))
    document = place.run("predict", "--replay", "recorded.json", "--json").document
    assert (document["allocations"], document["address_matches"]) == (2, 2)
    assert (document["segments"], document["segment_matches"]) == (1, 1)
    assert document["peak_reserved_bytes"] == 2**21


def test_a_dash_is_the_value_of_the_option_before_it() -> None:
    assert join_dash(["serve", "m", "--to", "-", "--http", "0"]) == [
        *["serve", "m", "--to=-", "--http", "0"]
    ]
    for tokens in (["-"], ["fit", "-"], ["tune", "--", "cat", "--to", "-"], []):
        assert join_dash(tokens) == tokens
