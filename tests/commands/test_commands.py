"""`fit` and `run` of real commands, from the shell and from Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_scripts import GALLERY, Done, processes_of

import rightbatch as rb
from rightbatch._training.trial import TrialRequest

Rightbatch = Callable[..., Done]
PYTHON = sys.executable
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")


@pytest.mark.slow
@ON_LINUX
def test_fit_finds_the_edge_of_a_command(rightbatch: Rightbatch, folder: Path) -> None:
    command = [PYTHON, "small.py", "--batch", "{batch}", "--steps", "1000"]
    done = rightbatch("fit", "--memory", "300MiB", "--json", "--", *command)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["batch_size"] == document["argument"]
    assert document["limit_enforced"] and document["device"] == "cpu"
    assert document["peak_bytes"] < 300 * 2**20
    assert document["examples"] == 640
    outcomes = {probe["batch_size"]: probe["outcome"] for probe in document["probes"]}
    assert outcomes[document["argument"]] == "ok"
    assert any("an evaluation was not reached" in note for note in document["notes"])
    # an independent run at twice the answer, limited in the same way, does not survive; closer to
    # the edge it depends on what malloc holds
    larger = rb.Command([*command[:-3], "{batch}", "--steps", "1000"])
    request = TrialRequest(steps=6, memory=300 * 2**20, margin=0.05)
    assert larger.trial(2 * document["argument"], request).outcome != "ok"
    assert processes_of(folder) == []


def test_a_report_is_that_of_the_command_which_trains_the_same(
    rightbatch: Rightbatch, folder: Path
) -> None:
    alone = subprocess.run(
        [PYTHON, "small.py", "--steps", "12"], capture_output=True, text=True, check=True
    )
    done = rightbatch("run", "--report", "r.json", "--", PYTHON, "small.py", "--steps", "12")
    assert done.code == 0, done.err
    assert done.out == alone.stdout  # the loss, bit for bit
    report = json.loads((folder / "r.json").read_text())
    assert (report["batch_size"], report["steps"], report["exit_code"]) == (8, 12, 0)
    assert report["losses"][-1][1] == float(alone.stdout.split()[1])
    # labels at random: of two sampled steps, not even a lower bound need be known
    if report["noise_scale"] is None:
        assert "cannot be told from noise" in report["noise_reason"]
    else:
        assert report["noise_scale"]["notes"] == ["of the linear, convolution and embedding layers"]
    assert "rightbatch: batch 8 · 12 steps" in done.err


def test_a_run_that_accumulates_has_a_noise_scale(rightbatch: Rightbatch) -> None:
    script = str(GALLERY / "accumulate.py")
    done = rightbatch("run", "--json", "--", PYTHON, script, "--micro-batch", "4")
    assert done.code == 0, done.err
    report = json.loads(done.out)  # the command's own output went to stderr
    assert "weights" in done.err
    assert report["micro_batches"] > 1
    assert report["batch_size"] == 4 * report["micro_batches"]
    assert report["noise_scale"]["steps"] >= 2


SCRIPTS: dict[str, tuple[str, int, str]] = {
    "no torch": ("print('done')", 2, "imported torch"),
    "no training": ("import torch; torch.zeros(1)", 2, "made no training step"),
    "own error": ("import torch; raise ValueError('my data is missing')", 3, "my data is missing"),
    "own error after the optimizer": (
        "import torch; torch.optim.SGD(torch.nn.Linear(1, 1).parameters()); raise ValueError('no')",
        3,
        "ValueError: no",
    ),
    "input": ("import torch; input('go on? ')", 3, "EOFError"),
    "exit": ("import sys; sys.exit(7)", 3, "status 7"),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_what_cannot_be_measured_is_refused_by_its_reason(
    rightbatch: Rightbatch, folder: Path, kind: str
) -> None:
    text, code, message = SCRIPTS[kind]
    (folder / "script.py").write_text(text)
    done = rightbatch("fit", "--json", "--", PYTHON, "script.py", "{batch}")
    assert done.code == code, done.err
    assert message in done.err
    if code == 3:
        assert json.loads(done.out)["batch_size"] is None


def test_wrong_use_names_the_remedy(rightbatch: Rightbatch) -> None:
    done = rightbatch("fit", "--", PYTHON, "small.py")
    assert done.code == 2 and "--batch {batch}" in done.err
    done = rightbatch("fit", "--", "no-such-program", "{batch}")
    assert done.code == 2 and "there is no program" in done.err
    done = rightbatch(
        "train", "--batch", "8", "--epochs", "1", "--", PYTHON, "small.py", "--batch", "{batch}"
    )
    assert done.code == 2 and "a command does not offer" in done.err


def test_a_file_of_the_user_is_not_overwritten(rightbatch: Rightbatch, folder: Path) -> None:
    (folder / "last.pt").write_bytes(b"of yesterday")
    saving = (
        (folder / "small.py")
        .read_text()
        .replace(
            "    for images", "    torch.save(model.state_dict(), 'last.pt')\n    for images", 1
        )
    )
    (folder / "small.py").write_text(saving)
    done = rightbatch("fit", "--", PYTHON, "small.py", "--batch", "{batch}")
    assert done.code == 2
    assert str(folder / "last.pt") in done.err and "{out}" in done.err
    assert (folder / "last.pt").read_bytes() == b"of yesterday"


def test_what_was_to_replace_a_file_of_the_user_is_not_left_beside_it(
    rightbatch: Rightbatch, folder: Path
) -> None:
    """Ultralytics saves a JPEG anew by a second one beside it, which it renames over the first."""
    (folder / "photo.jpg").write_bytes(b"of the user")
    (folder / "script.py").write_text(
        "import os, torch\n"
        "open('.photo.123.jpg', 'wb').write(b'another')\n"
        "os.replace('.photo.123.jpg', 'photo.jpg')\n"
    )
    before = {path.name for path in folder.iterdir()}
    done = rightbatch("fit", "--", PYTHON, "script.py", "--batch", "{batch}")
    assert done.code == 2 and str(folder / "photo.jpg") in done.err
    assert (folder / "photo.jpg").read_bytes() == b"of the user"
    assert {path.name for path in folder.iterdir()} == before


def test_an_exit_code_is_the_commands_own(rightbatch: Rightbatch, folder: Path) -> None:
    (folder / "script.py").write_text("import torch, sys; print(input()); sys.exit(5)")
    done = rightbatch("run", "--", PYTHON, "script.py", stdin="hello\n")
    assert (done.code, done.out) == (5, "hello\n")


def test_a_trial_leaves_no_process_that_it_started(folder: Path) -> None:
    daemon = "import subprocess, sys\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    (folder / "small.py").write_text(daemon + (folder / "small.py").read_text())
    command = rb.Command([PYTHON, "small.py", "--batch", "{batch}"])
    trial = command.trial(4, TrialRequest(steps=3))
    assert (trial.outcome, len(trial.charges), trial.examples_per_step) == ("ok", 3, 4)
    assert trial.examples == 640
    assert processes_of(folder) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_fit_is_ended(folder: Path, number: int) -> None:
    options: Any = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [PYTHON, "small.py", "--batch", "{batch}"]
    asked = [PYTHON, "-m", "rightbatch", "fit", "--memory", "2GiB", "--", *command]
    with subprocess.Popen(asked, **options) as process:
        until = time.monotonic() + 120
        while len(processes_of(folder)) < 2 and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(3)  # torch is being imported, or the training runs
        process.send_signal(number)
        process.communicate(timeout=60)
    until = time.monotonic() + 60
    while processes_of(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(folder) == []


def test_a_hidden_sitecustomize_is_run_as_well(
    folder: Path, rightbatch: Rightbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own").mkdir()
    (folder / "own" / "sitecustomize.py").write_text("import os; os.environ['SEEN'] = 'yes'")
    (folder / "script.py").write_text("import os, torch; print(os.environ['SEEN'])")
    path = os.pathsep.join([str(folder / "own"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    done = rightbatch("run", "--", PYTHON, "script.py")
    assert done.out == "yes\n", done.err


def test_a_loop_without_backward_passes_is_counted_by_its_optimizer(
    rightbatch: Rightbatch, folder: Path
) -> None:
    text = (folder / "small.py").read_text()
    text = text.replace("loss.backward()", "gradients = FUNCTION")
    kinds = {
        "grad": "torch.autograd.grad(loss, model.parameters())",
        "func": "tuple(map(torch.ones_like, model.parameters()))  # as of torch.func.grad",
    }
    put = "; [setattr(p, 'grad', g) for p, g in zip(model.parameters(), gradients)]"
    for name, function in kinds.items():
        code, _, comment = function.partition("  #")
        line = f"gradients = {code}{put}  #{comment}"
        (folder / f"{name}.py").write_text(text.replace("gradients = FUNCTION", line))
        done = rightbatch("run", "--json", "--", PYTHON, f"{name}.py", "--steps", "6")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert (report["steps"], report["batch_size"]) == (6, 8), name
