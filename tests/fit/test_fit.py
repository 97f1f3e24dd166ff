"""`fit` in earnest: real processes, real limits, real failures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fit_workloads as made
import psutil
import pytest
import torch
from torch.utils.data import Subset

import rightbatch as rb
from rightbatch._device import Reading
from rightbatch._fit.fit import _Search
from rightbatch._fit.probe import ProbeProcess, ProbeRequest
from rightbatch._fit.probe_worker import _probe as run_steps
from rightbatch._fit.source import WorkerSource
from rightbatch._predict.overhead import CONTEXT
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker import Header, Ready, header_for

MIB = 2**20
LINUX = sys.platform.startswith("linux")
only_enforced = pytest.mark.skipif(not LINUX, reason="the CPU's limit is enforced on Linux only")


def header_of(factory: Any, device: str | None) -> Header:
    return header_for(WorkloadTraining(factory), device=device, margin=0.0, seed=0)


def fit(factory: Any, **options: Any) -> rb.FitResult:
    return rb.fit(factory, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def fitted() -> rb.FitResult:
    """With the threads that torch takes by itself: what malloc holds depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        return fit(made.workload, memory="400MiB")


@only_enforced
def test_the_answer_survived_within_the_limit_less_the_margin(fitted: rb.FitResult) -> None:
    probe = next(p for p in fitted.probes if p.batch_size == fitted.batch_size and p.is_ok)
    assert fitted.limit_enforced
    assert fitted.limit_bytes == 400 * MIB
    assert fitted.peak_bytes == probe.peak_bytes
    assert (probe.charged_bytes or 0) <= 0.95 * fitted.limit_bytes
    assert fitted.evaluation_batch_size == fitted.batch_size
    assert fitted.smallest_batch_size == 1
    assert fitted.examples == 4000


@only_enforced
def test_a_probe_ends_early_where_its_charge_is_below_what_is_enough(tmp_path: Path) -> None:
    header = header_of(made.workload, "cpu")
    with ProbeProcess(header, 1, exact=True) as process:
        whole = process.run(ProbeRequest(4, 6, 400 * MIB, 6, (3, MIB)))
        brief = process.run(ProbeRequest(4, 6, None, 6, (3, 400 * MIB)))
    assert (whole.whole, whole.steps, whole.evaluation_batch_size) == (True, 6, 4)
    assert (brief.whole, brief.steps, brief.evaluation_batch_size) == (False, 3, None)


@only_enforced
def test_the_peak_is_what_the_tensors_need(fitted: rb.FitResult) -> None:
    # Per example: the input, and three more tensors of its size kept by each of four rounds
    # (the product and the argument of sin share one), and a gradient or two on their way.
    per_example = 4 * made.WIDTH
    small = {p.batch_size: p for p in fitted.probes if p.process == 1}
    sizes = sorted(small)
    low, high = sizes[-2], sizes[-1]
    slope = ((small[high].peak_bytes or 0) - (small[low].peak_bytes or 0)) / (high - low)
    assert 8 * per_example <= slope <= 12 * per_example


@only_enforced
def test_what_was_left_would_not_hold_much_more(fitted: rb.FitResult) -> None:
    failed = [p.batch_size for p in fitted.probes if p.outcome == "out_of_memory"]
    probe = next(p for p in fitted.probes if p.batch_size == fitted.batch_size and p.is_ok)
    room = 0.95 * fitted.limit_bytes - (probe.charged_bytes or 0)
    per_example = fitted.peak_bytes / fitted.batch_size
    assert (failed and min(failed) <= 1.1 * fitted.batch_size + 1) or (
        room <= 0.1 * fitted.batch_size * per_example
    )


@only_enforced
def test_while_the_charge_grows_more_steps_run_and_what_they_would_add_is_left_free() -> None:
    found = fit(made.keeps_a_little_of_every_step, memory="1500MiB", margin=0.0)
    probe = next(p for p in found.probes if p.batch_size == found.batch_size and p.is_ok)
    assert probe.process > 1
    assert probe.steps == 16
    assert 8 * 40 * MIB * 0.7 <= probe.growing_bytes <= 8 * 40 * MIB * 1.5
    assert (probe.charged_bytes or 0) + probe.growing_bytes <= 1500 * MIB
    assert "still growing by" in found.reason


@only_enforced
def test_small_sizes_run_two_steps_and_decisive_ones_at_least_six(fitted: rb.FitResult) -> None:
    ran = [p for p in fitted.probes if p.is_ok]
    assert {p.steps for p in ran if p.process == 1} == {2}
    assert all((p.steps or 0) >= 6 for p in ran if p.process > 1 and p.whole)


@pytest.mark.parametrize(("grows_until", "steps"), [(0, 6), (4, 8), (10**6, 16)])
def test_a_charge_that_has_settled_is_not_run_longer(grows_until: int, steps: int) -> None:
    ran = [0]

    def step(batch_size: int) -> None:
        ran[0] += 1

    def read() -> Reading:
        charge = 1000 + 100 * min(ran[0], grows_until)
        return Reading(peak_bytes=charge, charged_bytes=charge, live_bytes=charge)

    session = SimpleNamespace(varies=False, step=step, evaluate=lambda batch_size: batch_size)
    device = SimpleNamespace(reset_peak=lambda: None, read=read)
    command = {"batch_size": 4, "steps": 6, "most_steps": 16, "enough": (0, 0)}
    report = run_steps(session, device, command, inference=False)
    assert (report["outcome"], report["steps"]) == ("ok", steps)


def test_on_cuda_the_search_begins_at_the_size_that_is_predicted() -> None:
    header = header_of(made.workload, "cuda")
    search = _Search(WorkerSource(header), None, None, lambda examples: examples, lambda text: None)
    room = 700 * MIB
    search._ready = Ready("cuda:0", room, room, room, True, capability=8.9, examples=4000)
    predicted = search._prediction()
    largest = rb.predict(made.workload, batch=1, memory=room + CONTEXT[1], progress=False)
    assert predicted == largest.largest_batch_size
    assert 50 < (predicted or 0) < 200


def test_where_nothing_can_be_predicted_the_search_goes_by_small_sizes() -> None:
    header = header_of(made.with_wrong_shapes, None)
    search = _Search(WorkerSource(header), None, None, lambda examples: examples, lambda text: None)
    search._ready = Ready("cuda:0", MIB, MIB, MIB, True, capability=8.9, examples=4000)
    assert search._prediction() is None
    search._ready = Ready("cpu", MIB, MIB, MIB, True, examples=4000)
    assert search._prediction() is None


def test_a_multiple_beyond_an_epoch_is_refused_with_both_numbers() -> None:
    words = "multiple=8 is larger than an epoch, which has 5 examples.*at most 5"
    with pytest.raises(rb.UsageError, match=words):
        fit(lambda: made.workload(data=Subset(made.Examples(), range(5))), multiple=8)


def test_few_processes_were_started_and_small_sizes_shared_one(fitted: rb.FitResult) -> None:
    assert max(p.process for p in fitted.probes) <= 5
    assert [p.batch_size for p in fitted.probes if p.process == 1][:3] == [1, 2, 4]


def test_the_result_reads_well_and_serializes(fitted: rb.FitResult) -> None:
    import json

    assert f"batch size {fitted.batch_size}" in str(fitted)
    document = json.loads(json.dumps(fitted.to_dict()))
    assert document["batch_size"] == fitted.batch_size
    assert document["reason"] == fitted.reason
    outcomes = {"ok", "out_of_memory", "killed", "failed"}
    assert {probe["outcome"] for probe in document["probes"]} <= outcomes


@only_enforced
def test_inference_needs_less_and_so_fits_more(fitted: rb.FitResult) -> None:
    inference = fit(made.workload, memory="400MiB", inference=True)
    assert inference.batch_size > 1.5 * fitted.batch_size
    assert inference.evaluation_batch_size == inference.batch_size


@pytest.mark.parametrize(
    "factory", [made.with_workers, made.of_a_stream, made.compiled], ids=lambda f: f.__name__
)
def test_kinds_of_workloads_that_are_supported(factory: Any) -> None:
    assert fit(factory, max_batch=4).batch_size == 4


def test_two_is_the_smallest_where_one_example_is_one_too_few() -> None:
    result = fit(made.with_batch_norm, max_batch=4)
    assert (result.batch_size, result.smallest_batch_size) == (4, 2)
    assert result.probes[0].outcome == "failed"
    assert "Expected more than 1 value per channel" in result.probes[0].failure.message


@only_enforced
def test_a_killed_probe_is_a_size_that_does_not_fit() -> None:
    result = fit(made.that_is_killed, max_batch=64)
    assert result.batch_size == 5
    assert any(p.outcome == "killed" for p in result.probes)


@only_enforced
def test_a_crash_above_a_size_that_survived_is_a_size_that_does_not_fit() -> None:
    result = fit(made.that_crashes, max_batch=64)
    assert result.batch_size == 5
    assert any(p.outcome == "killed" for p in result.probes)


def test_a_shape_error_is_reported_as_itself() -> None:
    with pytest.raises(rb.WorkloadError, match="shapes cannot be multiplied") as caught:
        fit(made.with_wrong_shapes)
    assert caught.value.exit_code == 3
    assert caught.value.error_type == "RuntimeError"
    assert "def loss" in caught.value.traceback or "in loss" in caught.value.traceback


@only_enforced
def test_running_out_while_building_says_what_it_needs() -> None:
    with pytest.raises(rb.NothingFitsError, match="nothing fits: one example needs") as caught:
        fit(made.too_large_to_build, memory="200MiB")
    document = caught.value.to_dict()
    assert document["batch_size"] is None
    assert document["limit_bytes"] == 200 * MIB
    # Eight layers of 64 MiB, as many gradients, two moments; and no more than a third beside them.
    weights = 8 * 64 * MIB
    if document["needed_how"] == "measured":
        assert 4 * weights <= document["needed_bytes"] <= 5.5 * weights


def test_a_model_for_no_machine_is_followed_with_fake_tensors() -> None:
    with pytest.raises(rb.NothingFitsError, match=r"about .* TiB|about .* GiB") as caught:
        fit(made.too_large_for_any_machine, memory="1GiB")
    document = caught.value.to_dict()
    weights = 4 * 4 * (2**34 + 2**17)
    assert document["needed_how"] == "fake"
    assert document["needed_bytes"] == pytest.approx(4 * weights, rel=0.3)


def test_wrong_use_is_said_before_anything_runs() -> None:
    lock = threading.Lock()
    with pytest.raises(rb.UsageError, match="cannot be sent"):
        fit(lambda: lock)
    with pytest.raises(rb.UsageError, match="from 0 to below 1"):
        fit(made.workload, margin=1)
    with pytest.raises(rb.UsageError, match="at least 1"):
        fit(made.workload, max_batch=0)
    with pytest.raises(rb.UsageError, match="not a memory size"):
        fit(made.workload, memory="lots")
    with pytest.raises(rb.UsageError, match="a factory"):
        fit(made.workload())


def test_a_factory_of_something_else_is_wrong_use() -> None:
    with pytest.raises(rb.UsageError, match="returned str, expected a"):
        fit(made.that_is_no_workload)


def test_a_device_that_is_not_here_is_wrong_use() -> None:
    with pytest.raises(rb.UsageError, match="unknown device 'tpu'"):
        rb.fit(made.workload, device="tpu", progress=False)


def test_nothing_stays_behind_and_nothing_changes_here(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    random_state, environment = torch.get_rng_state(), dict(os.environ)
    before = set(psutil.Process().children(recursive=True))

    result = fit(made.that_prints)

    assert result.batch_size == 4
    assert "the data set's size" in result.reason
    assert torch.equal(torch.get_rng_state(), random_state)
    assert dict(os.environ) == environment
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    # those of other tests may end meanwhile
    assert not set(psutil.Process().children(recursive=True)) - before
    assert capfd.readouterr().out == "", "what a workload prints is not ours to print"


SCRIPT = """
import random
import torch
from torch import nn
import rightbatch as rb

print("running the script")

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        return torch.ones(8), 1.0

def workload():
    model = nn.Linear(8, 1)
    loss = lambda model, batch: ((model(batch[0]).squeeze(1) - batch[1]) ** 2).mean()
    return rb.Workload(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), Data())

before = random.getstate(), torch.get_rng_state().tolist()
print("found", rb.fit(workload, device="cpu").batch_size)
print("same numbers follow", (random.getstate(), torch.get_rng_state().tolist()) == before)
"""


def test_a_script_without_a_main_guard_is_run_once_and_keeps_its_random_numbers(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    said = ["running the script", "found 16", "same numbers follow True"]
    assert done.stdout.splitlines() == said
