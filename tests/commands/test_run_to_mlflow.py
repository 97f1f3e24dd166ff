"""A watched run that is kept in MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._errors import MissingExtraError
from rightbatch._run.mlflow_run import EXPERIMENT, MlflowRun
from rightbatch._run.options import RunOptions
from rightbatch._run.report import report_of
from rightbatch._training.watched import Watched

WATCHED = Watched(
    batch_size=32,
    micro_batches=2,
    ranks=1,
    steps=3,
    step_seconds=(0.5, 0.25, 0.25),
    waited_seconds=(0.0, 0.0, 0.0),
    losses=((0, 3.0), (1, 2.0), (2, 1.0)),
    device="cpu",
    peak_bytes=1000,
    limit_bytes=None,
    fixed_bytes=None,
    learning_rate=0.1,
    exit_code=3,
)


def test_losses_step_seconds_and_the_report_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    report = report_of(WATCHED, margin=0.05, memory=None)
    identity = MlflowRun().keep("python train.py --token …", WATCHED, report)
    client = client_of()
    run = client.get_run(identity)
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    assert run.info.status == "FAILED"  # as the command has
    assert run.data.params["batch_size"] == "32"
    assert run.data.params["command"] == "python train.py --token …"
    losses = client.get_metric_history(identity, "loss")
    assert [(each.step, each.value) for each in losses] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    seconds = client.get_metric_history(identity, "step_seconds")
    assert [each.timestamp - seconds[0].timestamp for each in seconds] == [0, 250, 500]
    assert {each.path for each in client.list_artifacts(identity)} == {"report.json", "report.txt"}


def test_a_run_is_refused_by_name_without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(MissingExtraError, match=r"rightbatch\[study\]"):
        rb.run(rb.Command([sys.executable, "-c", "raise SystemExit(9)"]), to="mlflow")
    with pytest.raises(rb.UsageError, match="'wandb'"):
        RunOptions(to="wandb")
