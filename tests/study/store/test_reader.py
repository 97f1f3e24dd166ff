"""Runs of a study come back as they were logged, and a store that cannot be read is named."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlflow")

from mlflow import environment_variables
from mlflow.tracking import MlflowClient
from study_stores import curve_of, finished, folder_with_database, only, point, store_in

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._study.records import Ended, RunKey, Target
from rightbatch._study.store.database import DATABASE, uri_of
from rightbatch._study.store.locations import Location
from rightbatch._study.store.mlflow_native import SUPERSEDED
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader
from rightbatch._study.store.sqlite_source import Rows, SqliteSource
from rightbatch._study.web.documents import StudyDocuments


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
        monkeypatch.setattr(f"{module}.locate", lambda uri, store: Location(uri, "server"))
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
            assert only(Reader(tmp_path / name)).id == ids[name]
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        for name, id in ids.items():
            assert only(Reader(tmp_path / name, store=elsewhere)).id == id
        for store_alone in (elsewhere, tmp_path / "elsewhere" / DATABASE):
            with pytest.raises(UsageError, match="--store goes with a study's folder"):
                Reader(store_alone, store=elsewhere)
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
        with socket.socket() as silent:  # it keeps the port from others, and does not listen
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
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
