"""Runs of other loggers: read with the batch size, steps and epochs that their parameters tell."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlflow")

from other_loggers import Others
from study_stores import curve_of, finished, folder_with_database, only

from rightbatch._errors import UsageError
from rightbatch._study.records import AXES, Run, RunKey
from rightbatch._study.store.database import DATABASE, uri_of
from rightbatch._study.store.history import History
from rightbatch._study.store.locations import Location
from rightbatch._study.store.mlflow_import import ImportedRun, facts
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader
from rightbatch._study.store.run_record import RunRecord


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run of each of the loggers."""
    others = Others(tmp_path_factory.mktemp("others"))
    others.ultralytics()
    others.transformers()
    others.lightning()
    return others.folder


class TestRunsOfOtherLoggers:
    @pytest.fixture
    def runs(self, folder: Path) -> dict[int, Run]:
        """By micro-batch size."""
        return {run.micro_batch_size or 0: run for run in Reader(folder).runs()}

    def test_of_ultralytics_are_by_epoch_and_accumulate_to_its_nominal_batch(
        self, runs: dict[int, Run]
    ) -> None:
        run = runs[16]
        assert (run.batch_size, run.seed, run.learning_rate) == (64, 7, 0.01)
        assert (run.status, run.epochs, run.seconds) == ("finished", 3, 33)
        assert run.metrics["metrics/mAP50B"] == 0.7
        curve = curve_of(run, "metrics/mAP50B")
        assert curve["values"] == [0.5, 0.7, 0.6]
        assert curve["epochs"] == [1, 2, 3]
        assert curve["seconds"] == [10, 20, 30]
        assert np.isnan(curve["steps"]).all()
        assert np.isnan(curve["examples"]).all()
        assert set(run.curves) == {"lr/pg0", "train/box_loss", "metrics/mAP50B"}

    def test_of_transformers_have_steps_and_the_epochs_that_they_log(
        self, runs: dict[int, Run]
    ) -> None:
        run = runs[4]
        assert (run.batch_size, run.seed, run.learning_rate) == (8, 42, 5e-05)
        assert (run.steps, run.examples, run.epochs, run.seconds) == (50, 400, 2, 6)
        assert curve_of(run, "eval_loss") == {
            "steps": [20, 40],
            "examples": [160, 320],
            "seconds": [2.5, 4.5],
            "epochs": [0.8, 1.6],
            "values": [0.1, 0.05],
        }
        assert "epoch" not in run.curves
        assert "epoch" not in run.metrics

    def test_of_lightning_count_their_steps_from_zero(self, runs: dict[int, Run]) -> None:
        run = runs[8]
        assert (run.batch_size, run.seed, run.learning_rate) == (8, None, 0.1)
        assert (run.steps, run.examples, run.epochs, run.seconds) == (30, 240, 3, 30.5)
        assert curve_of(run, "val_loss") == {
            "steps": [10, 20, 30],
            "examples": [80, 160, 240],
            "seconds": [10.5, 20.5, 30.5],
            "epochs": [1, 2, 3],
            "values": [0.2, 0.1, 2 / 30],
        }
        assert curve_of(run, "train_loss")["epochs"] == pytest.approx(
            [0.4, 0.8, 1.2, 1.6, 2, 2.4, 2.8]
        )

    def test_are_the_same_through_mlflow_as_from_its_database(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fast = Reader(folder).runs()
        by_mlflow = Location(uri_of(folder / DATABASE), "theirs")
        monkeypatch.setattr(
            "rightbatch._study.store.reader.locate", lambda source, store: by_mlflow
        )
        slow = Reader(folder).runs()
        assert [run.to_dict() for run in slow] == [run.to_dict() for run in fast]
        for one, other in zip(fast, slow, strict=True):
            assert list(one.curves) == list(other.curves)
            for name in one.curves:
                for axis in (*AXES, "values"):
                    expected = getattr(one.curves[name], axis)
                    np.testing.assert_array_equal(getattr(other.curves[name], axis), expected)

    def test_may_have_logged_nothing_yet(self, tmp_path: Path) -> None:
        others = Others(tmp_path)
        others.begin({})
        run = only(Reader(tmp_path))
        assert (run.status, run.batch_size, run.steps, run.seconds) == ("running", None, 0, 0)
        assert dict(run.curves) == {}

    def test_end_as_mlflow_says(self, tmp_path: Path) -> None:
        others = Others(tmp_path)
        for status in ("FINISHED", "FAILED", "KILLED"):
            others.client.set_terminated(others.begin({}, status), status)
        found = {run.name: run.status for run in Reader(tmp_path).runs()}
        assert found == {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}

    def test_are_chosen_by_experiment_and_left_out_of_a_study(self, tmp_path: Path) -> None:
        others = Others(tmp_path)
        theirs = others.transformers()
        assert only(Reader(tmp_path)).id == theirs
        store = Store.open(tmp_path, "digits")
        store.study({})
        ours = finished(store, RunKey(8, 0))
        assert only(Reader(tmp_path)).id == ours
        assert only(Reader(tmp_path, experiment="theirs")).id == theirs
        with pytest.raises(UsageError, match=r"no experiment 'others'.*'digits', 'theirs'"):
            Reader(tmp_path, experiment="others")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_lightning_itself_logs_is_read(tmp_path: Path, restored_tracking: None) -> None:
    """80 examples in batches of 8: 10 steps an epoch."""
    pytest.importorskip("lightning")
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.loggers import MLFlowLogger
    from torch.utils.data import DataLoader, TensorDataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self, batch_size: int = 8, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, number: int) -> Any:
            loss = self.layer(batch[0]).square().mean()
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    folder = folder_with_database(tmp_path)
    loader = DataLoader(TensorDataset(torch.ones(80, 2)), batch_size=8)
    trainer = pl.Trainer(
        max_epochs=3,
        logger=MLFlowLogger("lit", tracking_uri=uri_of(folder / DATABASE)),
        log_every_n_steps=4,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader, loader)
    run = only(Reader(folder))
    assert (run.batch_size, run.learning_rate, run.status) == (8, 0.1, "finished")
    assert (run.steps, run.examples, run.epochs) == (30, 240, 3)
    assert run.curves["val_loss"].steps.tolist() == [10, 20, 30]
    assert run.curves["val_loss"].epochs.tolist() == [1, 2, 3]
    assert run.curves["train_loss"].steps.tolist() == [4, 8, 12, 16, 20, 24, 28]


@pytest.fixture
def restored_tracking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning sets MLflow's global address, in the environment too."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    yield
    mlflow.set_tracking_uri(None)


class TestParameters:
    @pytest.mark.parametrize(
        ("batch", "nbs", "expected"),
        [(16, 64, 64), (64, 64, 64), (128, 64, 128), (24, 64, 72), (-1, 64, None), (0.7, 64, None)],
    )
    def test_of_ultralytics_tell_the_effective_batch(
        self, batch: float, nbs: int, expected: int | None
    ) -> None:
        told = {
            "batch": str(batch),
            "nbs": str(nbs),
            "imgsz": "640",
            "optimizer": "auto",
            "lr0": "1",
        }
        found = facts(told)
        assert found.batch_size == expected
        assert found.learning_rate is None  # `auto` takes another

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ({"batch_size": "32"}, 32),
            ({"batch_size": "32", "accumulate_grad_batches": "4"}, 128),
            ({"model/data.train_batch_size": "16"}, 16),
            ({"train.batch_size": "16", "val.batch_size": "8"}, None),
            ({"train.batch_size": "16", "val.batch_size": "16"}, 16),
            ({"batch_size": "auto"}, None),
            ({"batch_size": "nan"}, None),
            ({}, None),
        ],
    )
    def test_of_others_are_known_by_their_names(
        self, told: dict[str, str], expected: int | None
    ) -> None:
        assert facts(told).batch_size == expected

    def test_of_an_unknown_logger_do_not_make_examples_of_its_steps(self) -> None:
        numbers = np.arange(1.0, 4)
        histories = {"loss": History(numbers, 1000 * numbers, numbers)}
        curve = imported({"batch_size": "8"}, 500).curve("loss", histories)
        assert curve.steps.tolist() == [1, 2, 3]
        assert np.isnan(curve.examples).all()
        assert np.isnan(curve.epochs).all()
        assert curve.seconds.tolist() == [0.5, 1.5, 2.5]

    def test_of_a_logger_whose_steps_are_epochs_say_so(self) -> None:
        numbers = np.arange(3.0)
        one = History(numbers, 1000 * numbers, numbers)
        curve = imported({}, 5000).curve("loss", {"loss": one, "epoch": one})
        assert curve.epochs.tolist() == [1, 2, 3]
        assert np.isnan(curve.steps).all()
        assert curve.seconds.tolist() == [0, 1, 2]  # copied: begun after it was trained


def imported(parameters: dict[str, str], started: int) -> ImportedRun:
    return ImportedRun(RunRecord("1", "", "0", "FINISHED", started, {}, parameters, {}))
