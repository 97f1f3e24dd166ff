"""`train`: the whole loop of a workload, killed and resumed, alone and in several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import train_workloads as made

import rightbatch as rb
from rightbatch._workload.workload import StepSeconds
from rightbatch.testing import inject_out_of_memory

HERE = Path(__file__).parent
EPOCHS = 3


def train(out: Path, factory: Any = made.workload, **options: Any) -> rb.TrainResult:
    options = {"batch": 8, "micro_batch": 4, "epochs": EPOCHS, "device": "cpu"} | options
    return rb.train(factory, out=out, progress=False, **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "model.pt")  # type: ignore[no-any-return]


def same(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_trains_evaluates_and_writes_what_it_did(tmp_path: Path) -> None:
    result = train(tmp_path / "run", epochs=8)
    assert (result.batch_size, result.micro_batch_size) == (8, 4)
    assert result.steps == 8 * ceil(made.EXAMPLES / 8)
    assert result.examples == 8 * made.EXAMPLES
    assert result.out_of_memory_events == 0
    assert result.metrics["accuracy"] > 0.8
    history = lines(tmp_path / "run" / "history.jsonl")
    assert [line["epoch"] for line in history] == list(range(1, 9))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["evaluation_loss"] == pytest.approx(result.metrics["evaluation_loss"])
    model = made.workload().model
    model.load_state_dict(weights(tmp_path / "run"))


def test_the_schedule_ends_with_the_training(tmp_path: Path) -> None:
    train(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=False)
    assert state["loop"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_same_seed_makes_the_same_training_and_leaves_the_callers_random_state(
    tmp_path: Path,
) -> None:
    random.seed(5)
    torch.manual_seed(5)
    train(tmp_path / "one")
    drawn = random.random(), float(torch.rand(()))
    train(tmp_path / "two")
    train(tmp_path / "other", seed=1)
    random.seed(5)
    torch.manual_seed(5)
    assert drawn == (random.random(), float(torch.rand(())))
    assert same(tmp_path / "one", tmp_path / "two")
    assert not same(tmp_path / "one", tmp_path / "other")


def test_every_epoch_sees_every_example_once_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHTBATCH_TEST_SEEN", str(tmp_path / "seen"))
    with inject_out_of_memory("backward", when=(2, 9, 14)):
        train(tmp_path / "run")
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    epochs = [seen[i * made.EXAMPLES : (i + 1) * made.EXAMPLES] for i in range(EPOCHS)]
    assert all(sorted(epoch) == list(range(made.EXAMPLES)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Counter(seen) == dict.fromkeys(range(made.EXAMPLES), EPOCHS)


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer", "hook", "evaluation"])
def test_a_failure_leaves_the_end_of_the_training_as_it_is(tmp_path: Path, place: Any) -> None:
    train(tmp_path / "undisturbed")
    with inject_out_of_memory(place, when=1) as injected:
        result = train(tmp_path / "disturbed")
    assert injected.failed == [1]
    assert result.out_of_memory_events == 1
    assert same(tmp_path / "undisturbed", tmp_path / "disturbed")
    events = lines(tmp_path / "disturbed" / "events.jsonl")
    assert [event["place"] for event in events if event["place"]] == [place]


def test_memory_that_runs_out_in_the_users_evaluation_is_survived(tmp_path: Path) -> None:
    parts = ceil(made.EXAMPLES / 4)  # the loss of the evaluation data comes first
    with inject_out_of_memory("evaluation", when=parts):
        result = train(tmp_path / "run")
    assert result.out_of_memory_events == 1
    assert "accuracy" in result.metrics


def command(out: Path, *more: str, function: str = "workload") -> list[str]:
    workload = f"{HERE / 'train_workloads.py'}:{function}"
    arguments = [workload, "--device", "cpu", "--out", str(out), "--json", *more]
    return [sys.executable, "-m", "rightbatch", "train", *arguments]


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, **options), capture_output=True, text=True, check=False
    )


ALWAYS = ("--batch", "8", "--micro-batch", "4", "--epochs", "100000", "--checkpoint-seconds", "0")


def killed(out: Path, kind: int, *, after_steps: int) -> subprocess.CompletedProcess[str]:
    """A training that `kind` ended in the middle of an epoch."""
    process = subprocess.Popen(
        command(out, *ALWAYS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None:
            time.sleep(0.05)
            if (out / "last.pt").exists():
                steps = torch.load(out / "last.pt", weights_only=False)["loop"]["state"]["steps"]
                if steps > after_steps and steps % ceil(made.EXAMPLES / 8):
                    break
        process.send_signal(kind)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_training_that_was_ended_resumes_at_the_next_example(
    tmp_path: Path, kind: signal.Signals
) -> None:
    out = tmp_path / "ended"
    done = killed(out, kind, after_steps=30)
    assert done.returncode in (-kind, 130)
    if kind != signal.SIGKILL:
        assert "continue with --resume" in done.stderr
        assert "Traceback" not in done.stderr
    steps = torch.load(out / "last.pt", weights_only=False)["loop"]["state"]["steps"]
    epochs = ceil(steps / ceil(made.EXAMPLES / 8)) + 1
    factory = f"{HERE / 'train_workloads.py'}:workload"
    resumed = train(out, factory, epochs=epochs, resume=True)
    assert resumed.steps == epochs * ceil(made.EXAMPLES / 8)
    assert resumed.examples == epochs * made.EXAMPLES


def test_a_resumed_training_ends_bit_for_bit_as_one_that_was_never_ended(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    ended = tmp_path / "ended"
    with pytest.raises(rb.WorkloadError, match="the power went"):
        train(ended, made_to_fail, checkpoint_seconds=0)
    at = torch.load(ended / "last.pt", weights_only=False)["loop"]["state"]
    assert at["position"] > 0, "in the middle of an epoch"
    result = train(ended, resume=True)
    assert result.examples == EPOCHS * made.EXAMPLES
    assert same(tmp_path / "whole", ended)
    mine, whole = lines(ended / "history.jsonl"), lines(tmp_path / "whole" / "history.jsonl")
    assert [line["epoch"] for line in mine] == [1, 2, 3]
    assert [line["loss"] for line in mine] == pytest.approx([line["loss"] for line in whole])


def made_to_fail() -> rb.Workload:
    workload = made.workload()
    calls = iter(range(10_000))

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if next(calls) == 20:
            raise RuntimeError("the power went")
        return made.loss(model, batch)

    return replace(workload, loss=loss)


def test_auto_tunes_trains_as_the_plan_says_and_goes_on_at_its_size(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--epochs", "40", "--memory", "1GiB", "--budget", "4s")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    size, plan = document["batch_size"], document["plan"]
    assert 2 <= size <= 4, "300 updates in 40 epochs of 45 examples"
    assert size == plan["batch_size"] and document["reason"] == plan["reason"]
    assert document["steps"] == 40 * ceil(made.EXAMPLES / size)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=False)
    began = state["loop"]["optimizer"]["param_groups"][0]["initial_lr"]
    assert began == pytest.approx(0.02 * plan["learning_rate_factor"])
    resumed = run(tmp_path / "run", "--epochs", "41", "--resume")
    assert json.loads(resumed.stdout)["batch_size"] == size


class Eager:
    """Measures after every step, and grows once it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import rightbatch._train.growth as growth

        monkeypatch.setattr(growth, "WINDOW", 0.0)
        monkeypatch.setattr(growth, "MIN_WINDOWS", 1)
        slow = {m: (StepSeconds(0, 1.0 + 1e-6 * m, 0),) * 5 for m in (1, 2, 4, 8, 16)}
        chosen = {"batch_size": 2, "micro_batch_size": 2, "base_batch": 2, "samples": slow}
        plan = SimpleNamespace(**chosen, learning_rate_factor=1.0, reason="it says so")
        monkeypatch.setattr("rightbatch._train.train.tune", lambda *_, **__: plan)


def test_batches_grow_with_the_noise_scale_and_the_learning_rate_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Eager(monkeypatch)
    options: dict[str, Any] = {"batch": "auto", "adapt": True, "epochs": 200, "micro_batch": "auto"}
    result = train(tmp_path / "run", made.plain, **options)
    assert result.micro_batch_size == result.batch_size, "the parts grow as well"
    grown = [e for e in lines(tmp_path / "run" / "events.jsonl") if e["kind"] == "adapted"]
    assert grown, "a step costs the same at every size, so larger ones are faster"
    assert result.batch_size == 2 * 2 ** len(grown)
    assert all("noise scale" in event["reason"] for event in grown)
    assert result.examples == 200 * made.EXAMPLES, "no example is missed or seen twice"
    assert result.steps < 200 * ceil(made.EXAMPLES / 2)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=False)
    assert state["loop"]["optimizer"]["param_groups"][0]["lr"] != 0.1
    options |= {"epochs": 201, "resume": True}
    again = train(tmp_path / "run", made.plain, **options)
    assert again.batch_size >= result.batch_size
    assert again.examples == 201 * made.EXAMPLES


def test_parts_that_were_asked_for_stay_and_then_larger_batches_gain_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Eager(monkeypatch)
    options: dict[str, Any] = {"batch": "auto", "adapt": True, "epochs": 40, "micro_batch": 2}
    result = train(tmp_path / "run", made.plain, **options)
    assert (result.batch_size, result.micro_batch_size) == (2, 2)


def test_measuring_on_the_way_does_not_change_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Eager(monkeypatch)
    monkeypatch.setattr("rightbatch._train.growth.MIN_WINDOWS", 10**9)
    options: dict[str, Any] = {"batch": "auto", "epochs": 5, "micro_batch": 2}
    train(tmp_path / "plain", made.plain, **options)
    train(tmp_path / "measured", made.plain, adapt=True, **options)
    assert same(tmp_path / "plain", tmp_path / "measured")


def test_adapt_takes_a_size_that_tune_has_chosen(tmp_path: Path) -> None:
    with pytest.raises(rb.UsageError, match="batch='auto'"):
        train(tmp_path / "run", adapt=True)


def test_two_processes_of_torchrun_train_as_one(tmp_path: Path) -> None:
    train(tmp_path / "alone", made.plain)
    arguments = command(tmp_path / "two", *ALWAYS[:4], "--epochs", "3", function="plain")[3:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "rightbatch", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-10, atol=1e-12)
    assert len(lines(tmp_path / "two" / "history.jsonl")) == EPOCHS


def test_a_folder_that_holds_a_training_is_not_written_over(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    before = weights(tmp_path / "run")
    with pytest.raises(rb.UsageError, match="--resume"):
        train(tmp_path / "run", epochs=1)
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "run").items())


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    with pytest.raises(rb.UsageError, match="batch_size was 8, not 16"):
        train(tmp_path / "run", batch=16, resume=True)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(rb.UsageError, match="nothing to resume"):
        train(tmp_path / "none", resume=True)


def test_a_stream_is_refused_with_the_way_round(tmp_path: Path) -> None:
    with pytest.raises(rb.UsageError, match="Elastic as its step"):
        train(tmp_path / "run", made.stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 'auto' or a number"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"micro_batch": 0}, "'auto' or a number"),
        ({"settings": {"lr": 1}}, "train with settings needs settings of its framework"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(rb.UsageError, match=message):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_empty_data_is_refused(tmp_path: Path) -> None:
    def empty() -> rb.Workload:
        nothing = torch.utils.data.TensorDataset(torch.zeros(0, 6), torch.zeros(0))
        return replace(made.plain(), data=nothing)

    with pytest.raises(rb.UsageError, match="data is empty"):
        train(tmp_path / "run", empty)


def test_a_batch_larger_than_the_data_is_one_step_an_epoch(tmp_path: Path) -> None:
    result = train(tmp_path / "run", batch=100, epochs=2)
    assert (result.steps, result.examples) == (2, 2 * made.EXAMPLES)
