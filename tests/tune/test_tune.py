"""`tune` from the shell and from Python, as a user has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tune_workloads as made

import rightbatch as rb

HERE = Path(__file__).parent
QUICK: dict[str, Any] = {"budget": 3, "device": "cpu", "progress": False, "max_batch": 32}


@pytest.fixture(scope="module")
def plan() -> rb.Plan:
    return rb.tune(made.workload, target="loss=0.45", verify=True, **QUICK | {"budget": 5})


def test_a_plan_has_the_size_its_reasons_and_all_that_was_measured(plan: rb.Plan) -> None:
    document = json.loads(json.dumps(plan.to_dict()))
    assert document["batch_size"] == plan.micro_batch_size * plan.accumulation
    assert {"value", "low", "high"} <= set(document["noise_scale"])
    sizes = [each["batch_size"] for each in document["expected"]]
    assert sizes == sorted(sizes) and {1, 16, plan.batch_size, plan.largest.batch_size} <= {*sizes}
    for each in document["throughput"]:
        assert 0 < each["low"] <= each["examples_per_second"] <= each["high"]
    chosen = next(e for e in document["expected"] if e["batch_size"] == plan.batch_size)
    assert chosen["relative_time"] == 1 and chosen["seconds"] > 0
    assert plan.steps_per_epoch == -(-made.EXAMPLES // plan.batch_size)
    assert len(document["samples"]) >= 3 and document["observations"]
    assert document["averaged_noise_scale"]["low"] > 0 and document["observations_at_average"]
    assert all(each["code"] and each["text"] for each in document["advice"])
    assert "reaches the target soonest" in document["reason"]


def test_a_plan_can_be_read_and_drawn(plan: rb.Plan) -> None:
    text = str(plan)
    assert text.startswith(f"batch size {plan.batch_size}")
    assert "noise scale" in text and "chosen" in text and "default" in text
    names = [trace.name for trace in plan.plot().data]
    assert len(names) == 3 and any("both" in name for name in names)


def test_a_run_that_does_not_improve_is_still_answered_and_said() -> None:
    found = rb.tune(made.still, **QUICK | {"budget": 6})
    assert found.batch_size >= 1
    assert "not_improving" in [each.code for each in found.advice]


def test_advice_that_needs_the_model_applies_to_it() -> None:
    found = rb.tune(made.normalized, base_batch=4, **QUICK | {"max_batch": 8})
    codes = [each.code for each in found.advice]
    assert "few_values_per_channel" in codes
    assert found.micro_batch_size >= 2, "BatchNorm cannot train on one"


def test_branches_are_trained_where_that_is_asked_for(plan: rb.Plan) -> None:
    sizes = [branch.batch_size for branch in plan.branches]
    assert plan.batch_size in sizes and 2 * plan.batch_size in sizes
    assert "Branches of" in plan.reason


def test_a_training_of_few_epochs_keeps_enough_updates(plan: rb.Plan) -> None:
    short = rb.tune(made.workload, largest=plan.largest, epochs=2, **QUICK | {"budget": 2})
    assert -(-made.EXAMPLES // short.batch_size) * 2 >= 300
    assert short.steps_in_all == 2 * short.steps_per_epoch
    assert plan.steps_in_all is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "0.45"}, "loss=0.45"),
        ({"target": "accuracy=high"}, "loss=0.45"),
        ({"budget": "soon"}, "not a duration"),
        ({"objective": "fame"}, "time, cost, energy"),
        ({"objective": "energy"}, "NVIDIA"),
        ({"base_batch": 0}, "at least 1"),
        ({"target": "mAP=0.5"}, "one of accuracy"),
    ],
)
def test_what_cannot_be_meant_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rb.UsageError, match=message):
        rb.tune(made.workload, **(QUICK | options))


def test_a_pilot_that_runs_out_of_memory_goes_on_in_smaller_parts() -> None:
    found = rb.tune(made.exhausting, **QUICK)
    assert len(found.seen.at_weights) >= 2


def test_a_stream_is_refused_with_the_way_round() -> None:
    with pytest.raises(rb.UsageError, match="NoiseScale in your own loop"):
        rb.tune(made.streamed, **QUICK)


def test_a_training_that_explodes_is_the_workloads_failure() -> None:
    with pytest.raises(rb.WorkloadError, match="FloatingPointError"):
        rb.tune(made.exploding, **QUICK)


def test_from_the_shell_it_prints_one_document_and_writes_the_picture(tmp_path: Path) -> None:
    picture = tmp_path / "plan.html"
    command = f"""tune {HERE / "tune_workloads.py"}:workload --budget 3s --device cpu --json
        --max-batch 4 --processes 4 --objective cost --bandwidth 1MB --plot {picture}"""
    done = subprocess.run(
        [sys.executable, "-m", "rightbatch", *command.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert 1 <= document["batch_size"] <= 4
    assert max(each["batch_size"] for each in document["expected"]) == 4
    assert document["objective"] == "cost"
    assert document["processes"] == 1, "an exchange that slow is not worth four devices"
    assert "plotly" in picture.read_text()
