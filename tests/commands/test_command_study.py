"""Studies of commands: each run is the command, with its agent, to its end."""

from __future__ import annotations

import itertools
import os
import re
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
from rightbatch._study.records import Run, RunKey
from rightbatch._study.store.reader import Reader

PYTHON = sys.executable
BATCHES = "python train.py --batch {batch}"
TRAIN = """
import argparse, os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--lr", type=float, default=0.004)
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--out")
parser.add_argument("--token")
parser.add_argument("--trouble", action="store_true")
args = parser.parse_args()
torch.set_num_threads(1)
x = torch.randn(640, 16, generator=torch.Generator().manual_seed(0))
y = x @ torch.arange(16.0).reshape(16, 1) / 16
torch.manual_seed(args.seed)
model = nn.Linear(16, 1)
optimizer = torch.optim.Adam(model.parameters(), args.lr)
loader = DataLoader(TensorDataset(x, y), args.batch, shuffle=True, drop_last=True)
for epoch in range(args.epochs if len(loader) else 1):
    for a, b in loader:
        loss = nn.functional.mse_loss(model(a), b)
        if args.trouble and args.batch == 20:
            loss = loss * float("nan")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if args.trouble and args.batch == 32:
        raise ValueError("32 is too much for me")
    if args.trouble and args.batch == 64:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with torch.no_grad():
        print(f"epoch {epoch} | error {nn.functional.mse_loss(model(x), y):.5f} |")
if args.out:
    torch.save(model.state_dict(), os.path.join(args.out, "last.pt"))
"""
ERROR = r"mean_error=error ([\d.]+)"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("script") / "train.py"
    file.write_text(TRAIN)
    return str(file)


def runs_in(out: Path) -> dict[tuple[int | None, int | None], Run]:
    with Reader(out) as reader:
        return {(run.batch_size, run.seed): run for run in reader.runs()}


def study(script: str, out: Path, arguments: str, **options: Any) -> rb.StudyResult:
    command = rb.Command([PYTHON, script, *arguments.split()])
    return rb.study(command, out=out, progress=False, **options)


ARGUMENTS = "--batch {batch} --seed {seed} --lr {learning_rate} --out {out} --token s3cret"


@pytest.fixture(scope="module")
def studied(script: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes with two seeds, of which the smaller ones end after 100 steps."""
    out = tmp_path_factory.mktemp("study") / "s"
    options = {"batches": [8, 32], "seeds": 2, "steps": 100, "base_batch": 8, "jobs": 2}
    study(script, out, ARGUMENTS, metrics=[ERROR], **options)
    return out


def test_each_run_is_the_command_with_its_size_and_seed(studied: Path) -> None:
    runs = runs_in(studied)
    assert set(runs) == {(8, 0), (8, 1), (32, 0), (32, 1)}
    assert {run.status for run in runs.values()} == {"finished"}
    for (size, _), run in runs.items():
        assert (run.steps, run.examples) == (100, 100 * size)
        assert run.epochs == pytest.approx(run.examples / 640)
        assert run.micro_batch_size == size
        assert run.reason == "100 steps"
        assert run.seconds > 0 and (run.peak_bytes or 0) > 0 and run.device == "cpu"
        loss = run.curves["loss"]
        assert loss.steps[-1] == 100 and loss.values[-1] < loss.values[0]
        assert (loss.examples == size * loss.steps).all()
    first, second = (runs[8, seed].curves["loss"].values[0] for seed in (0, 1))
    assert first != second


def test_a_number_in_the_output_is_a_metric_at_its_step(studied: Path) -> None:
    run = runs_in(studied)[32, 0]
    error = run.curves["mean_error"]
    log = studied / "runs" / f"{RunKey(32, 0).name}.log"
    printed = [float(number) for number in re.findall(r"error ([\d.]+)", log.read_text())]
    # 20 steps an epoch, of which the last may end the run
    assert 4 <= len(printed) <= 5
    assert all(later < earlier for earlier, later in itertools.pairwise(printed))
    # Lines that a busy machine reads together are at one step, with the last of their numbers.
    epochs = [printed.index(value) + 1 for value in error.values]
    assert epochs == sorted(epochs) and epochs[-1] == len(printed)
    assert all(
        20 * epoch <= steps <= run.steps for epoch, steps in zip(epochs, error.steps, strict=True)
    )


def test_the_first_run_shows_the_optimizer_whose_rule_sets_the_rates_of_the_others(
    studied: Path,
) -> None:
    """Adam's rate goes as the square root of the batch size, from the script's own rate."""
    runs = runs_in(studied)
    assert min(runs.values(), key=lambda run: run.started).key == runs[8, 0].key
    rates = {size: runs[size, 0].learning_rate for size in (8, 32)}
    assert rates == {8: pytest.approx(0.004), 32: pytest.approx(0.008)}


def test_files_and_output_are_kept_and_secrets_are_not(studied: Path) -> None:
    logs = sorted(path.name for path in (studied / "runs").glob("*.log"))
    assert len(logs) == 4
    assert "epoch 0 | error" in (studied / "runs" / logs[0]).read_text()
    assert (studied / "runs" / logs[0].removesuffix(".log")).is_dir()
    for path in studied.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path
    parameters = runs_in(studied)[8, 0].parameters
    assert parameters["workload"] == f"{Path(PYTHON).name} train.py"
    assert "--token" in parameters["command"] and "***" in parameters["command"]


def test_the_same_study_trains_nothing_again(script: str, studied: Path) -> None:
    before = set((studied / "runs").iterdir())
    options: dict[str, Any] = {"metrics": [ERROR], "steps": 100, "base_batch": 8}
    result = study(script, studied, ARGUMENTS, batches=[8, 32], seeds=2, **options)
    assert len(result.runs) == 4
    assert set((studied / "runs").iterdir()) == before
    with pytest.raises(rb.UsageError, match="holds another study: command was"):
        study(script, studied, f"{ARGUMENTS} --epochs 2", batches=[8], seeds=2, **options)
    with pytest.raises(rb.UsageError, match="holds another study: steps was 100"):
        study(script, studied, ARGUMENTS, batches=[8], seeds=2, **options | {"steps": 9})


@pytest.mark.slow
def test_a_target_ends_a_run_and_what_fails_is_a_result(script: str, tmp_path: Path) -> None:
    arguments = "--batch {batch} --epochs 100000 --lr 0.01 --trouble"
    result = study(
        script,
        tmp_path,
        arguments,
        batches=[16, 20, 32, 64, 1000],
        seeds=1,
        metrics=[ERROR],
        target="mean_error=0.5",
        jobs=2,
    )
    runs = {run.batch_size: run for run in result.runs}
    assert {size: run.status for size, run in runs.items()} == {
        16: "finished",
        20: "diverged",
        32: "failed",
        64: "out_of_memory",
        1000: "failed",
    }
    assert runs[16].reason.startswith("mean_error reached 0.")
    assert runs[16].steps > 40 and runs[16].metrics["mean_error"] <= 0.5
    assert "the loss became nan" in runs[20].reason
    assert "32 is too much for me" in runs[32].reason
    assert runs[32].steps == 20
    assert "Tried to allocate" in runs[64].reason
    assert "no training step" in runs[1000].reason
    assert result.exit_code == 3 and result.summary.sizes[0].count == 1


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no batch": ("--seed {seed}", {}, r"study needs \{batch\}"),
    "no seed": ("--batch {batch}", {"seeds": 2}, r"put \{seed\} where its seed goes"),
    "no rate": ("--batch {batch}", {"learning_rates": (1, 2)}, r"needs \{learning_rate\}"),
    "no value": ("--batch {batch} --accum {accumulation}", {}, r"\{accumulation\} has no value"),
    "no group": ("--batch {batch}", {"metrics": ["a=b"]}, "no group for the number"),
    "no metric": ("--batch {batch}", {"target": "accuracy=0.9"}, "no metric 'accuracy'"),
    "sharpness": ("--batch {batch}", {"sharpness": True}, "no --sharpness for a command: leave"),
    "processes": ("--batch {batch}", {"processes": 2}, "start it with torchrun"),
    "micro-batch": ("--batch {batch}", {"micro_batch": 4}, "no --micro-batch for a command"),
    "memory": ("--batch {batch}", {"memory": "1GiB"}, "no --memory for a command"),
    "device": ("--batch {batch}", {"device": "cpu"}, "no --device for a command"),
    "epochs": ("--batch {batch}", {"epochs": 2}, "end its runs with --steps or --budget"),
    "settings": ("--batch {batch}", {"settings": {"lr": 1}}, "no settings for a command"),
    "ray": ("--batch {batch}", {"on": "ray"}, "a command is not trained on 'ray'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_command_cannot_do_is_refused_by_its_name(
    script: str, tmp_path: Path, case: str
) -> None:
    arguments, options, said = REFUSED[case]
    with pytest.raises(rb.UsageError, match=said):
        study(script, tmp_path / "s", arguments, **{"batches": [8], "seeds": 1} | options)
    assert not (tmp_path / "s").exists()


def test_metrics_and_an_end_are_for_the_trainings_that_need_them(tmp_path: Path) -> None:
    def workload() -> rb.Workload:
        raise AssertionError

    with pytest.raises(rb.UsageError, match="read from a command's output"):
        rb.study(workload, batches=[8], epochs=1, metrics=[ERROR], out=tmp_path / "s")
    with pytest.raises(rb.UsageError, match="nothing ends a run"):
        rb.study(workload, batches=[8], out=tmp_path / "s")


def processes_of(script: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if script in process.cmdline()[:2] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_ends_with_the_study(script: str, tmp_path: Path, number: signal.Signals) -> None:
    """The command trains when the study is interrupted or killed."""
    options = ["--batches", "8", "--seeds", "1", "--out", str(tmp_path / "s"), "--metric", ERROR]
    command = [PYTHON, script, "--batch", "{batch}", "--epochs", "100000"]
    with subprocess.Popen(
        [PYTHON, "-m", "rightbatch", "study", *options, "--", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ.copy(),
    ) as process:
        log = tmp_path / "s" / "runs" / "batch_8-seed_0-rate_1.0.log"
        until(lambda: log.exists() and "epoch 2" in log.read_text())
        assert len(processes_of(script)) == 1
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(240) == (130 if number == signal.SIGINT else -number)
    until(lambda: not processes_of(script))
    if number == signal.SIGINT:
        assert "the same command continues the study" in said
        assert runs_in(tmp_path / "s")[8, 0].status == "stopped"
