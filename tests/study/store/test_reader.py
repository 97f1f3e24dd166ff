from __future__ import annotations

import logging
import math
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlflow")

from mlflow import environment_variables
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
from study_stores import finished, folder_with_database, point, store_in

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._study.records import AXES, Ended, Run, RunKey, Target
from rightbatch._study.store.database import DATABASE, uri_of
from rightbatch._study.store.history import History
from rightbatch._study.store.locations import Location
from rightbatch._study.store.mlflow_import import ImportedRun, facts
from rightbatch._study.store.mlflow_native import SUPERSEDED
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader
from rightbatch._study.store.run_record import RunRecord
from rightbatch._study.store.sqlite_source import Rows, SqliteSource
from rightbatch._study.web.documents import StudyDocuments

STARTED = 1_700_000_000_000
"""Of runs of other loggers, in milliseconds."""

# What Ultralytics logs of its arguments, as its callback logs them: all as text.
YOLO = {
    "task": "detect",
    "mode": "train",
    "epochs": 3,
    "batch": 16,
    "nbs": 64,
    "imgsz": 640,
    "seed": 7,
    "optimizer": "SGD",
    "lr0": 0.01,
    "cls": 0.5,
}
# As `TrainingArguments.to_dict` has them, among many more.
TRAINING_ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-05,
    "seed": 42,
    "num_train_epochs": 2,
}


class Others:
    """Runs as other loggers write them."""

    def __init__(self, folder: Path, experiment: str = "theirs") -> None:
        self.folder = folder_with_database(folder)
        self.client = MlflowClient(tracking_uri=uri_of(folder / DATABASE))
        self.experiment = self.client.create_experiment(experiment)

    def begin(self, parameters: dict[str, Any], name: str = "train") -> str:
        run = self.client.create_run(self.experiment, start_time=STARTED, run_name=name).info.run_id
        texts = [Param(key, str(value)) for key, value in parameters.items()]
        self.client.log_batch(run, params=texts)
        return str(run)

    def log(self, run: str, step: int, seconds: float, **values: float) -> None:
        at = STARTED + round(1000 * seconds)
        metrics = [
            Metric(name.replace("__", "/"), value, at, step) for name, value in values.items()
        ]
        self.client.log_batch(run, metrics=metrics)

    def ultralytics(self) -> str:
        """Three epochs, and then the best weights once more, at the step of the last epoch."""
        run = self.begin(YOLO)
        for epoch in range(3):
            self.log(run, epoch, 10 * epoch + 8, lr__pg0=0.01, train__box_loss=2.0 - epoch / 2)
            self.log(run, epoch, 10 * epoch + 10, metrics__mAP50B=(0.5, 0.7, 0.6)[epoch])
        self.log(run, 2, 33, metrics__mAP50B=0.7)
        self.client.set_terminated(run)
        return run

    def transformers(self) -> str:
        """200 examples in batches of 8: 25 steps an epoch."""
        run = self.begin(TRAINING_ARGUMENTS)
        for step in (10, 20, 30, 40, 50):
            self.log(run, step, step / 10, loss=1 / step, grad_norm=1.0, epoch=step / 25)
            if step in (20, 40):
                self.log(run, step, step / 10 + 0.5, eval_loss=2 / step, epoch=step / 25)
        self.log(run, 50, 6, train_runtime=6.0, epoch=2.0)
        self.client.set_terminated(run)
        return run

    def lightning(self) -> str:
        """Ten steps an epoch, the first being step 0, logged every four; then the validation."""
        run = self.begin({"data/batch_size": 8, "lr": 0.1})
        for step in range(30):
            if step % 4 == 3:
                self.log(run, step, step + 1, train_loss=1 / (step + 1), epoch=step // 10)
            if step % 10 == 9:
                self.log(run, step, step + 1.5, val_loss=2 / (step + 1), epoch=step // 10)
        self.client.set_terminated(run)
        return run


def curve_of(run: Run, name: str) -> dict[str, list[float]]:
    curve = run.curves[name]
    return {key: value.tolist() for key, value in vars(curve).items()}


def only(reader: Reader) -> Run:
    (run,) = reader.runs()
    return run


class TestRunsOfAStudy:
    def test_come_back_as_they_were_logged(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        log = store.begin(RunKey(16, 3, 0.5), {"epochs": 2})
        points = [point(steps, 16, loss=1 / steps, learning_rate=0.1) for steps in range(1, 6)]
        points[2] = point(3, 16, accuracy=0.75)
        log.points(points)
        ended = Ended(
            "diverged",
            "the loss is no number",
            micro_batch_size=4,
            steps=6,
            examples=96,
            seconds=2.9,
            epochs=0.096,
            learning_rate=0.2,
            peak_bytes=5_000_000,
            limit_bytes=8_000_000,
            device="cpu",
        )
        log.ended(ended)
        run = only(Reader(tmp_path))
        for name, told in vars(ended).items():
            if name not in ("metrics", "error", "out_of_memory_events"):
                assert getattr(run, name) == told
        assert (run.id, run.name) == (log.id, str(log.key))
        assert (run.batch_size, run.seed, run.learning_rate_factor) == (16, 3, 0.5)
        assert run.metrics == {"loss": 0.2, "learning_rate": 0.1, "accuracy": 0.75}
        assert run.parameters["epochs"] == "2"
        assert run.started == pytest.approx(
            MlflowClient(store.uri).get_run(log.id).info.start_time / 1000
        )
        assert set(run.curves) == {"loss", "learning_rate", "accuracy"}
        logged = [one for one in points if "loss" in one.values]
        assert curve_of(run, "loss") == {
            "steps": [one.steps for one in logged],
            "examples": [one.examples for one in logged],
            "seconds": [one.seconds for one in logged],
            "epochs": [one.epochs for one in logged],
            "values": [one.values["loss"] for one in logged],
        }
        assert curve_of(run, "accuracy") == {
            "steps": [3],
            "examples": [48],
            "seconds": [1.5],
            "epochs": [0.048],
            "values": [0.75],
        }

    def test_may_have_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        values = [math.nan, math.inf, -math.inf, 1e300]
        log = store.begin(RunKey(8, 0), {})
        log.points([point(step, loss=value) for step, value in enumerate(values, 1)])
        log.points([point(5, other=math.inf)])
        run = only(Reader(tmp_path))
        assert run.metrics == {"loss": 1e300, "other": math.inf}
        np.testing.assert_array_equal(run.curves["loss"].values, values)

    def test_are_told_of_while_they_train(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        reader = Reader(tmp_path)
        assert reader.runs() == []
        log = store.begin(RunKey(8, 0), {"micro_batch_size": 2, "device": "cpu"})
        begun = only(reader)
        assert (begun.status, begun.steps, dict(begun.curves)) == ("running", 0, {})
        assert (begun.micro_batch_size, begun.device) == (2, "cpu")
        log.points([point(steps) for steps in (1, 2)])
        early = only(reader)
        assert (early.status, early.steps, early.examples, early.seconds) == ("running", 2, 16, 1)
        log.points([point(3)])
        assert curve_of(only(reader), "loss")["steps"] == [1, 2, 3]
        log.points([point(4)])
        late = only(reader)
        assert curve_of(late, "loss")["examples"] == [8, 16, 24, 32]
        log.ended(Ended("finished", "1 epoch", steps=4))
        done = only(reader)
        assert (done.status, done.reason) == ("finished", "1 epoch")
        assert curve_of(done, "loss") == curve_of(late, "loss")

    def test_are_read_once_when_they_have_ended_and_otherwise_what_is_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[tuple[str, int]] = []
        rows = SqliteSource.rows

        def counting(self: SqliteSource, run: str, before: Rows) -> Rows:
            found = rows(self, run, before)
            read.append((run, found.codes.size - before.codes.size))
            return found

        monkeypatch.setattr(SqliteSource, "rows", counting)
        store = store_in(tmp_path)
        done = finished(store, RunKey(8, 0), steps=range(1, 11))
        log = store.begin(RunKey(8, 1), {})
        log.points([point(1), point(2)])
        reader = Reader(tmp_path)
        before = [run.curves["loss"] for run in reader.read()]
        log.points([point(3)])
        after = [run.curves["loss"] for run in reader.read()]
        assert after[0] is before[0]
        assert read == [(done, 50), (log.id, 10), (log.id, 5)]

    def test_change_the_revision_with_everything_that_is_written(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        reader = Reader(tmp_path)
        log = store.begin(RunKey(8, 0), {})
        seen = [reader.revision()]
        for write in (
            lambda: log.points([point(1)]),
            lambda: log.points([point(2)]),
            lambda: log.parameters({"device": "cpu"}),
            lambda: log.ended(Ended("finished", "1 epoch")),
            lambda: store.begin(RunKey(8, 1), {}),
        ):
            reader.read()
            assert reader.revision() == seen[-1]
            write()
            seen.append(reader.revision())
        assert len(set(seen)) == len(seen)

    def test_of_two_tries_the_newest_counts(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        older = finished(store, RunKey(8, 0), status="failed", reason="crashed")
        other = finished(store, RunKey(8, 1))
        reader = Reader(tmp_path)
        assert [run.status for run in reader.runs()] == ["failed", "finished"]
        newer = finished(store, RunKey(8, 0))
        runs = {run.id: run for run in reader.runs()}
        assert list(runs) == [older, other, newer]
        assert (runs[older].status, runs[older].reason) == ("stopped", SUPERSEDED)
        assert runs[older].steps == 3
        assert [runs[id].status for id in (other, newer)] == ["finished", "finished"]

    def test_that_began_and_ended_between_two_looks_are_found(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        reader = Reader(tmp_path)
        ids = [finished(store, RunKey(8, 0))]
        assert [run.id for run in reader.runs()] == ids
        ids += [finished(store, RunKey(8, seed)) for seed in range(1, 8)]
        assert [run.id for run in reader.runs()] == ids

    def test_that_were_deleted_are_gone(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        kept = finished(store, RunKey(8, 0))
        log = store.begin(RunKey(8, 1), {})
        reader = Reader(tmp_path)
        assert len(reader.runs()) == 2
        MlflowClient(store.uri).delete_run(log.id)
        assert [run.id for run in reader.runs()] == [kept]

    def test_come_with_the_title_and_the_target(self, tmp_path: Path) -> None:
        store = Store.open(folder_with_database(tmp_path), "digits.py:workload")
        store.study({"batches": [8]}, Target("top 1=a", 0.1 + 0.2))
        reader = store.reader()
        assert (reader.title, reader.target) == ("digits.py:workload", Target("top 1=a", 0.1 + 0.2))

    def test_are_told_of_as_they_are_read(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        for seed in range(3):
            finished(store, RunKey(8, seed))
        told: list[tuple[int, int]] = []
        Reader(tmp_path).read(lambda *progress: told.append(progress))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_may_be_in_a_store_that_is_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is asked every two seconds whether anything has changed."""
        store = store_in(tmp_path)
        log = store.begin(RunKey(8, 0), {})
        log.points([point(1)])
        now = [100.0]
        module = "rightbatch._study.store.reader"
        monkeypatch.setattr(f"{module}.locate", lambda uri: Location(uri, "server"))
        monkeypatch.setattr("rightbatch._study.store.reader.monotonic", lambda: now[0])
        reader = Reader(store.uri)
        seen = reader.revision()
        log.points([point(2)])
        assert reader.revision() == seen
        now[0] += 2
        assert reader.revision() != seen
        log.points([point(3)])
        assert curve_of(only(reader), "loss")["examples"] == [8, 16, 24]

    def test_are_found_from_the_folder_wherever_the_store_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = uri_of(folder_with_database(tmp_path / "elsewhere") / DATABASE)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
        ids = {}
        for name in ("one", "two"):
            store = Store.open(tmp_path / name, "digits")
            store.study({})
            ids[name] = finished(store, RunKey(8, 0))
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        for name, id in ids.items():
            assert only(Reader(tmp_path / name)).id == id
        assert only(Reader(elsewhere)).id == ids["two"]
        assert {run.id for run in Reader(elsewhere, experiment="digits").runs()} == {*ids.values()}


def test_what_a_run_told_of_itself_comes_back_with_it(tmp_path: Path) -> None:
    with store_in(tmp_path / "runs") as store:
        told = [{"kind": "out_of_memory", "step": 3, "reason": "no room", "micro_batch_size": 4}]
        log = store.begin(RunKey(8, 0), {})
        log.ended(Ended("finished", "1 epoch"), told)
        silent = store.begin(RunKey(8, 1), {})
    with Reader(tmp_path / "runs") as reader:
        assert reader.events(log.id) == told
        assert reader.events(silent.id) == []
        assert StudyDocuments(reader).run(log.id)["events"] == told


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

        def refuse(*arguments: object) -> None:
            raise sqlite3.OperationalError("no such table: metrics")

        monkeypatch.setattr(SqliteSource, "__init__", refuse)
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


class TestWhatCannotBeOpened:
    def test_is_named_with_the_remedy(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file.db").write_bytes(b"no database" * 100)
        for source, said in {
            tmp_path / "missing": "there is no.*rightbatch study",
            tmp_path / "empty": "has no runs: neither mlflow.db nor mlruns.*rightbatch study",
            f"sqlite:///{(tmp_path / 'missing.db').as_posix()}": "there is no database",
            "sqlite://": "names no file",
        }.items():
            with pytest.raises(UsageError, match=said):
                Reader(source)
        assert not (tmp_path / "missing").exists()

    @pytest.mark.skipif(
        not hasattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE"),
        reason="this MLflow opens them",
    )
    def test_a_store_of_files_says_how_it_is_turned_into_a_database(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
        experiment = tmp_path / "mlruns" / "0"
        experiment.mkdir(parents=True)
        (experiment / "meta.yaml").write_text("name: Default\n", "utf-8")
        for source in (tmp_path, tmp_path / "mlruns", (tmp_path / "mlruns").as_uri()):
            with pytest.raises(UsageError, match=r"migrate-filestore --source .*mlruns"):
                Reader(source)

    def test_a_server_that_does_not_answer(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(
            UsageError, match=f"127.0.0.1:{port}.*`mlflow server` starts one"
        ) as error:
            Reader(f"http://me:secret@127.0.0.1:{port}")
        assert "secret" not in str(error.value)

    def test_a_store_that_went_away(self, tmp_path: Path) -> None:
        finished(store_in(tmp_path), RunKey(8, 0))
        reader = Reader(tmp_path)
        reader.runs()
        reader.close()
        (tmp_path / DATABASE).unlink()
        with pytest.raises(RightbatchError, match="does not exist any more"):
            reader.runs()
