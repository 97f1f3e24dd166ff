"""Runs in processes of their own, as they end well and badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import study_workloads
from study_runs import plan_of

from rightbatch._device import open_device
from rightbatch._errors import UsageError, WorkloadError
from rightbatch._study.records import Ended, RunKey, Target
from rightbatch._study.runs.process import RunEvent, stream_events
from rightbatch._study.runs.training import Reporter, factors_of, train_run
from rightbatch._training.protocol import Training
from rightbatch._training.resolve import resolve
from rightbatch._units import parse_bytes
from rightbatch._worker.wire import header_for

HERE = Path(__file__).parents[1]
PATIENCE = 60.0


def training_of(function: str) -> Training:
    return resolve(f"{HERE / 'study_workloads.py'}:{function}")


def run(function: str, batch_size: int = 16, **about: Any) -> list[RunEvent]:
    header = header_for(training_of(function), device="cpu", margin=0.05, seed=0)
    told: dict[str, Any] = {"epochs": 2, "micro_batch": batch_size}
    plan = plan_of(RunKey(batch_size, 0), **told | about)
    return list(stream_events(header, plan, threads=1))


def ended(said: list[RunEvent]) -> Ended:
    """The last that was said, and said only once."""
    found = [one.ended for one in said if one.ended is not None]
    assert len(found) == 1
    assert said[-1].ended is found[0]
    return found[0]


def test_a_run_tells_its_points_and_then_how_it_ended() -> None:
    said = run("regression", epochs=4, target=Target("evaluation_loss", 1e-9))
    points = [point for one in said for point in one.points]
    end = ended(said)
    assert (end.status, end.reason) == ("finished", "4 epochs")
    assert points[-1].steps == end.steps == 4 * study_workloads.EXAMPLES // 16
    assert (end.examples, end.epochs) == (4 * study_workloads.EXAMPLES, 4.0)
    assert end.learning_rate == 0.05
    assert end.metrics["evaluation_loss"] == points[-1].values["evaluation_loss"]
    assert end.device == "cpu"
    assert end.micro_batch_size == 16
    assert end.peak_bytes is not None and end.limit_bytes is not None
    assert 0 <= end.peak_bytes < end.limit_bytes
    assert end.error is None


def here(function: str, batch_size: int = 16, **about: Any) -> Ended:
    """A run in this process, which is what its own one does."""
    training = training_of(function).load()
    told: dict[str, Any] = {"epochs": 2, "micro_batch": batch_size}
    plan = plan_of(RunKey(batch_size, 0), **told | {"rule": "none"} | about)
    heard: list[dict[str, Any]] = []
    device = open_device("cpu")
    device.prepare()
    return train_run(training, plan, device, 2**30, Reporter(lambda **said: heard.append(said)))


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        ("diverging", "diverged", "the loss"),
        ("failing_at_24", "failed", "ValueError: 24 is too much for me"),
        ("short_of_memory", "out_of_memory", ""),
    ],
)
def test_what_goes_wrong_is_a_result_with_its_reason(
    function: str, status: str, reason: str
) -> None:
    size = 24 if function == "failing_at_24" else 16
    end = here(function, size)
    assert end.status == status, end
    assert reason in end.reason
    assert end.error is not None and end.error["message"]


def test_a_batch_that_the_data_do_not_fill_is_a_result_too() -> None:
    end = here("regression", 100)
    assert end.status == "failed"
    assert "96 examples, fewer than a batch of 100" in end.reason


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is enforced on Linux only")
@pytest.mark.parametrize(("memory", "status"), [("120MiB", "out_of_memory"), ("1GiB", "finished")])
def test_a_limit_of_the_operating_system_is_what_a_run_has(memory: str, status: str) -> None:
    limit = parse_bytes(memory)
    end = ended(run("too_large", memory=limit, micro_batch="auto", epochs=1))
    assert end.status == status, end
    assert end.limit_bytes == limit
    assert end.peak_bytes is not None and end.peak_bytes < limit


def test_a_process_that_dies_without_a_word_has_failed() -> None:
    end = ended(run("dying"))
    assert end.status == "failed"
    assert "the process ended with status" in end.reason


def test_what_every_run_would_meet_is_raised() -> None:
    with pytest.raises(WorkloadError, match="RuntimeError: there is no data here"):
        run("broken")
    with pytest.raises(UsageError, match="depends on the noise scale"):
        here("regression", 32, rule="scaling")


def test_the_learning_rate_goes_with_the_batch_by_the_rule() -> None:
    """SGD's by (1 + φ/B0)/(1 + φ/B), Adam's by the square root; times the run's own factor."""

    def factors(size: int, betas: tuple[float, float] | None, **about: Any) -> tuple[float, float]:
        plan = plan_of(RunKey(size, 0, 0.5), **about)
        return factors_of(training_of("regression"), plan, betas)

    assert factors(64, None, noise_scale=48.0) == pytest.approx((4.0, 0.5 * (1 + 3) / (1 + 0.75)))
    assert factors(64, None, noise_scale=float("inf")) == pytest.approx((4.0, 2.0))
    assert factors(64, (0.9, 0.999)) == pytest.approx((4.0, 1.0))
    assert factors(64, None, rule="none") == (1.0, 0.5)
    assert factors(16, None) == (1.0, 0.5)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gloo and torchrun as on Linux")
def test_processes_that_train_together_end_where_one_alone_does() -> None:
    """The same batches in two parts: the same weights but for rounding, told once."""
    alone, together = run("regression"), run("regression", processes=2)
    one, two = ended(alone), ended(together)
    assert (two.status, two.steps, two.examples) == (one.status, one.steps, one.examples)
    assert two.metrics["evaluation_loss"] == pytest.approx(one.metrics["evaluation_loss"], rel=1e-4)
    steps = [point.steps for said in together for point in said.points]
    assert steps == sorted(steps)


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_run_ends_with_the_process_that_started_it() -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from rightbatch._training.resolve import resolve
        from rightbatch._worker.wire import header_for
        from rightbatch._study.runs.process import stream_events
        from rightbatch._study.records import RunKey
        from study_runs import plan_of

        header = header_for(
            resolve({str(HERE / "study_workloads.py")!r} + ":slow"), device="cpu", margin=0, seed=0
        )
        plan = plan_of(RunKey(16, 0), epochs=10_000, micro_batch=16)
        for said in stream_events(header, plan, on_start=lambda c: print(c.pid, flush=True)):
            if said.points:
                print("trains", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "trains\n"
        parent.send_signal(signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while is_there(child):
            assert time.monotonic() < until, "it trains on without a parent"
            time.sleep(0.05)


def is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False
