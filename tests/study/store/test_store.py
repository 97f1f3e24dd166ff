from __future__ import annotations

import json
import logging
import math
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient
from study_stores import finished, folder_with_database, point, store_in

from rightbatch._errors import MissingExtraError, RightbatchError, UsageError
from rightbatch._study.records import Ended, Point, RunKey, Target
from rightbatch._study.store import database
from rightbatch._study.store.database import DATABASE, POINTER, open_client, retry, uri_of
from rightbatch._study.store.mlflow_writer import Store

KEY = RunKey(8, 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_in(tmp_path_factory.mktemp("study"))


def client_of(store: Store) -> MlflowClient:
    return MlflowClient(tracking_uri=store.uri)


class TestARun:
    def test_is_in_mlflow_as_it_was_logged(self, store: Store) -> None:
        log = store.begin(KEY, {"epochs": 3, "workload": "digits", "micro_batch_size": None})
        points = [point(steps, loss=1 / steps, accuracy=steps / 10) for steps in range(1, 5)]
        log.points(points[:1])
        log.points(points[1:])
        log.parameters({"micro_batch_size": 4})
        client = client_of(store)
        run = client.get_run(log.id)
        assert run.info.status == "RUNNING"
        assert run.info.run_name == str(KEY)
        assert run.data.params == {
            "batch_size": "8",
            "seed": "0",
            "learning_rate_factor": "1.0",
            "epochs": "3",
            "workload": "digits",
            "micro_batch_size": "4",
        }
        for name, expected in {
            "loss": [one.values["loss"] for one in points],
            "accuracy": [one.values["accuracy"] for one in points],
            "examples": [one.examples for one in points],
            "seconds": [one.seconds for one in points],
            "epochs": [one.epochs for one in points],
        }.items():
            told = client.get_metric_history(log.id, name)
            assert [one.value for one in told] == expected
            assert [one.step for one in told] == [one.steps for one in points]
            assert [one.timestamp for one in told] == [round(one.at * 1000) for one in points]

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            ("finished", "FINISHED"),
            ("out_of_memory", "FAILED"),
            ("diverged", "FAILED"),
            ("failed", "FAILED"),
            ("stopped", "KILLED"),
        ],
    )
    def test_ends_in_mlflow_as_it_ended(self, store: Store, status: str, expected: str) -> None:
        log = store.begin(KEY, {})
        error = {"type": "RuntimeError", "message": "x" * 5000, "traceback": "y" * 20000}
        ended = Ended(
            status,  # type: ignore[arg-type]
            "z" * 5000,
            steps=3,
            metrics={"loss": math.nan, "accuracy": 0.5},
            error=error,
        )
        log.ended(ended, [{"kind": "out_of_memory", "steps": 2}])
        run = client_of(store).get_run(log.id)
        assert run.info.status == expected
        assert run.data.tags["rightbatch.status"] == status
        told = store.document("run.json", log.id)
        assert told is not None
        assert told["events"] == [{"kind": "out_of_memory", "steps": 2}]
        assert told["ended"]["error"] == error
        assert told["ended"]["metrics"] == {"loss": None, "accuracy": 0.5}
        found = store.runs()[KEY.name]
        assert (found.id, found.status) == (log.id, status)
        assert found.ended is not None
        assert found.ended.steps == 3
        assert found.ended.metrics["accuracy"] == 0.5
        assert math.isnan(found.ended.metrics["loss"])

    def test_may_have_more_metrics_than_a_tag_holds(self, store: Store) -> None:
        metrics = {f"class {number} accuracy": number / 1000 for number in range(1000)}
        finished(store, RunKey(8, 50), metrics=metrics)
        found = store.runs()[RunKey(8, 50).name]
        assert found.ended is not None
        assert found.ended.steps == 3

    def test_may_log_more_at_once_than_mlflow_takes(self, store: Store) -> None:
        log = store.begin(RunKey(8, 51), {})
        log.points([point(steps) for steps in range(1, 402)])  # 5 metrics each
        client = client_of(store)
        assert [one.step for one in client.get_metric_history(log.id, "loss")] == list(
            range(1, 402)
        )

    def test_may_have_metrics_of_any_name(self, store: Store) -> None:
        names = ["mAP@50 (B)", "mAP@50 [B]", "/top", "../up", "größe", "seconds", "a//b", " "]
        log = store.begin(RunKey(8, 52), {})
        values = {name: float(number) for number, name in enumerate(names)}
        log.points([point(1, **values)])
        told = client_of(store).get_run(log.id).data.metrics
        assert told["seconds"] == 0.5
        assert sorted(value for name, value in told.items() if name not in LOGGED_AXES) == sorted(
            values.values()
        )

    def test_may_log_the_same_twice(self, store: Store) -> None:
        """As it happens when MLflow was busy and had taken it all the same."""
        log = store.begin(RunKey(8, 53), {})
        for _ in range(2):
            log.points([point(1, loss=1.0), point(2, loss=2.0)])
        told = client_of(store).get_metric_history(log.id, "loss")
        assert [one.step for one in told] == [1, 2]


LOGGED_AXES = {"examples", "seconds", "epochs"}


class TestGoingOn:
    def test_finds_the_newest_try_at_each_run(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        first = finished(store, KEY, status="stopped", reason="Ctrl-C")
        other = finished(store, RunKey(16, 1, 0.5))
        second = finished(store, KEY)
        third = store.begin(RunKey(32, 0), {})
        found = Store.open(tmp_path, "digits").runs()
        assert {key: run.id for key, run in found.items()} == {
            KEY.name: second,
            RunKey(16, 1, 0.5).name: other,
            RunKey(32, 0).name: third.id,
        }
        assert first != second
        assert found[RunKey(16, 1, 0.5).name].key == RunKey(16, 1, 0.5)
        assert found[KEY.name].ended == Ended(
            "finished", "1 epoch", steps=3, examples=24, seconds=1.5, epochs=0.024
        )
        assert found[RunKey(32, 0).name].status == "running"
        assert found[RunKey(32, 0).name].ended is None

    def test_the_newest_is_the_last_begun_even_if_the_clock_was_set_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finished(store_in(tmp_path), KEY, status="stopped")
        store = Store.open(tmp_path, "digits")
        store.runs()
        monkeypatch.setattr("time.time_ns", lambda: 10**18)
        second = finished(store, KEY)
        assert store.runs()[KEY.name].id == second

    def test_stops_the_runs_that_a_sweep_left_behind(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        done = finished(store, KEY)
        left = store.begin(RunKey(8, 1), {})
        left.points([point(1)])
        later = Store.open(tmp_path, "digits")
        assert [run.key for run in later.abandon("killed")] == [RunKey(8, 1)]
        assert later.abandon() == []
        found = later.runs()
        assert found[KEY.name].id == done
        assert found[KEY.name].status == "finished"
        stopped = found[RunKey(8, 1).name]
        assert (stopped.status, stopped.reason, stopped.ended) == ("stopped", "killed", None)
        assert client_of(store).get_run(left.id).info.status == "KILLED"

    def test_a_run_whose_last_word_is_missing_has_not_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_in(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "set_terminated", killed)
            with pytest.raises(Killed):
                finished(store, KEY)
        found = Store.open(tmp_path, "digits").runs()[KEY.name]
        assert (found.status, found.ended) == ("running", None)

    def test_what_was_asked_is_known_again(self, tmp_path: Path) -> None:
        folder = folder_with_database(tmp_path)
        store = Store.open(folder, "digits")
        assert store.asked() is None
        id = store.study({"batches": [8, 16], "margin": 0.05}, Target("accuracy", 0.9))
        again = Store.open(folder, "another title")
        assert again.asked() == {"batches": [8, 16], "margin": 0.05}
        assert again.study({"batches": [8, 16, 32]}) == id
        assert Store.open(folder, "digits").asked() == {"batches": [8, 16, 32]}

    def test_half_a_document_counts_as_none(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        (file,) = tmp_path.glob("artifacts/*/artifacts/study.json")
        file.write_text(file.read_text("utf-8")[:20], "utf-8")
        assert store.asked() is None
        store.study({"batches": [8]})
        assert store.asked() == {"batches": [8]}

    def test_documents_are_where_mlflow_knows_them_and_move_with_the_folder(
        self, tmp_path: Path
    ) -> None:
        store = store_in(tmp_path / "before")
        id = store.study({"batches": [8]})
        store.artifact("decisions.json", {"noise_scale": math.inf, "schema": 1})
        path = client_of(store).download_artifacts(id, "decisions.json")
        expected = {"schema": 1, "noise_scale": None}
        assert json.loads(Path(path).read_text("utf-8")) == expected
        (tmp_path / "before").rename(tmp_path / "after")
        moved = Store.open(tmp_path / "after", "digits")
        assert moved.document("decisions.json") == expected
        finished(moved, KEY)
        assert not (tmp_path / "before").exists()

    def test_a_store_elsewhere_is_found_from_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two folders share it, and neither goes on with the other's runs."""
        elsewhere = uri_of(folder_with_database(tmp_path / "elsewhere") / DATABASE)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
        one, two = (Store.open(tmp_path / name, "digits") for name in ("one", "two"))
        one.study({"batches": [8]})
        two.study({"batches": [16]})
        finished(one, KEY)
        assert not (tmp_path / "one" / DATABASE).exists()
        again = Store.open(tmp_path / "one", "digits")
        assert again.asked() == {"batches": [8]}
        assert list(again.runs()) == [KEY.name]
        assert Store.open(tmp_path / "two", "digits").runs() == {}


class Killed(BaseException):
    pass


def killed(*arguments: object, **named: object) -> None:
    raise Killed


class TestTheDatabase:
    def test_is_made_in_silence_and_leaves_the_users_mlflow_alone(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = mlflow.get_tracking_uri(), mlflow.active_run(), dict(os.environ)
        levels = {
            name: logging.getLogger(name).level for name in ("", "mlflow", "alembic", "sqlalchemy")
        }
        store = Store.open(tmp_path / "new é", "digits")
        store.study({})
        finished(store, KEY)
        assert list(store.runs()) == [KEY.name]
        told = capfd.readouterr()
        assert (told.out, told.err) == ("", "")
        assert (mlflow.get_tracking_uri(), mlflow.active_run(), dict(os.environ)) == before
        assert {name: logging.getLogger(name).level for name in levels} == levels
        assert logging.getLogger("mlflow.store.db.utils").level == logging.NOTSET
        assert sorted(path.name for path in (tmp_path / "new é").iterdir()) == [
            "artifacts",
            DATABASE,
        ]

    def test_is_there_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", killed)
        with pytest.raises(Killed):
            Store.open(tmp_path, "digits")
        assert not (tmp_path / DATABASE).exists()

    def test_of_another_process_that_was_first_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / DATABASE
        path.write_bytes(b"theirs")
        new = tmp_path / "new"
        new.write_bytes(b"ours")
        database._place(new, path)
        monkeypatch.setattr("os.link", raising(PermissionError))
        database._place(new, path)
        assert path.read_bytes() == b"theirs"
        path.unlink()
        database._place(new, path)
        assert path.read_bytes() == b"ours"

    def test_takes_what_several_threads_log_while_others_read(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        logs = [store.begin(RunKey(8, seed), {}) for seed in range(4)]
        reader = store.reader()
        done = threading.Event()
        lengths: list[int] = []

        def write(number: int) -> None:
            for steps in range(1, 11):
                logs[number].points([point(steps)])
            logs[number].ended(Ended("finished", "1 epoch", steps=10))

        def read() -> None:
            while not done.is_set():
                lengths.extend(len(run.curves["loss"].steps) for run in reader.runs() if run.curves)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        reading = threading.Thread(target=read)
        for thread in (reading, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        reading.join()
        assert [len(run.curves["loss"].steps) for run in reader.runs()] == [10] * 4
        assert max(lengths, default=0) <= 10

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    def test_reads_and_goes_on_after_a_kill_at_any_moment(self, tmp_path: Path) -> None:
        folder = folder_with_database(tmp_path)
        for kill in range(3):
            child = os.fork()
            if child == 0:  # a process that logs until it is killed
                try:
                    store = Store.open(folder, "digits")
                    store.study({"batches": [8]})
                    log = store.begin(RunKey(8, kill), {})
                    for steps in range(1, 10_000):
                        log.points([point(steps)])
                finally:
                    os._exit(1)
            with sqlite3.connect(folder / DATABASE, timeout=20) as watching:
                wanted = (
                    "select max(step) from runs join metrics using (run_uuid)"
                    " where runs.name = ? and key = 'loss'"
                )
                name = str(RunKey(8, kill))
                while (watching.execute(wanted, (name,)).fetchone()[0] or 0) < 3 + kill:
                    assert os.waitpid(child, os.WNOHANG) == (0, 0)
            watching.close()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            store = Store.open(folder, "digits")
            assert [run.key.seed for run in store.abandon()] == [kill]
            assert len(store.runs()) == kill + 1
        for run in store.reader().runs():
            assert run.status == "stopped"
            steps = run.curves["loss"].steps
            assert steps.tolist() == list(range(1, len(steps) + 1))
            assert len(steps) >= 3


def raising(error: type[Exception]) -> object:
    def function(*arguments: object) -> None:
        raise error

    return function


class TestErrors:
    def test_a_busy_store_is_asked_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr("time.sleep", pauses.append)
        answers = iter([MlflowException("locked", TEMPORARILY_UNAVAILABLE)] * 2)

        def call() -> int:
            for error in answers:
                raise error
            return 7

        assert retry(call) == 7
        assert pauses == list(database.PAUSES[:2])

    def test_a_store_that_stays_busy_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        calls = []

        def call() -> None:
            calls.append(1)
            raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)

        with pytest.raises(RightbatchError, match="database is locked"):
            retry(call)
        assert len(calls) == len(database.PAUSES) + 1

    def test_what_a_store_refuses_is_not_asked_again(self) -> None:
        calls = []

        def call() -> None:
            calls.append(1)
            raise MlflowException("no such run", INVALID_PARAMETER_VALUE)

        with pytest.raises(RightbatchError, match="no such run"):
            retry(call)
        assert len(calls) == 1

    def test_without_mlflow_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
        with pytest.raises(MissingExtraError, match=r"rightbatch\[study\]"):
            open_client(f"sqlite:///{(tmp_path / DATABASE).as_posix()}")

    def test_a_folder_that_sqlalchemy_cannot_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="use another folder"):
            Store.open(tmp_path / "50%25?", "digits")

    def test_a_database_of_another_mlflow_is_refused_in_its_own_words(self, tmp_path: Path) -> None:
        folder = folder_with_database(tmp_path)
        with sqlite3.connect(folder / DATABASE) as connection:
            connection.execute("update alembic_version set version_num = '0a8213491aaa'")
        connection.close()
        with pytest.raises(UsageError, match="mlflow db upgrade"):
            Store.open(folder, "digits")


def test_points_between_seconds_keep_their_order(store: Store) -> None:
    log = store.begin(RunKey(8, 54), {})
    log.points([Point(step, step, 0.0, 0.0, {"loss": 1.0}, at=0.0001 * step) for step in (1, 2)])
    told = client_of(store).get_metric_history(log.id, "loss")
    assert [one.step for one in told] == [1, 2]
    assert POINTER not in [path.name for path in store.folder.iterdir()]
