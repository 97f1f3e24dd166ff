"""What `report` and `ui` are pointed at is not written to, whatever it is, and not followed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from study_stores import empty_database, finished, folder_with_database, store_in

from rightbatch._errors import UsageError
from rightbatch._study.records import RunKey
from rightbatch._study.store.database import DATABASE, POINTER, read_pointer, uri_of
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.reader import Reader


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def browser(path: Path) -> None:
    change(path, "create table cookies (name, value)", "insert into cookies values (1, 2)")


def browser_in_use(path: Path) -> None:
    """With a write-ahead log, as of a browser that was killed."""
    other = path.with_name("live.sqlite")
    database = sqlite3.connect(other)
    database.execute("pragma journal_mode = wal")
    database.execute("create table cookies (name, value)")
    database.commit()
    shutil.copy(other, path)
    shutil.copy(f"{other}-wal", f"{path}-wal")
    database.close()
    other.unlink()


def empty(path: Path) -> None:
    path.touch()


def without_tables(path: Path) -> None:
    change(path, "pragma user_version = 1")


def text(path: Path) -> None:
    path.write_text("hello" * 1000)


def cut(path: Path) -> None:
    path.write_bytes(empty_database()[:8192])


def older(path: Path) -> None:
    path.write_bytes(empty_database())
    change(path, "drop table latest_metrics", "alter table tags rename column value to content")


def views(path: Path) -> None:
    """Views in the place of the tables, which could run anything for as long as they like."""
    path.write_bytes(empty_database())
    change(path, "alter table runs rename to hidden", "create view runs as select * from hidden")


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (browser, "not one of MLflow's"),
        (browser_in_use, "not one of MLflow's"),
        (empty, "is empty"),
        (without_tables, "not one of MLflow's"),
        (text, "not a SQLite database"),
        (cut, "cannot be read"),
        (older, "older MLflow.*mlflow db upgrade"),
        (views, "not one of MLflow's"),
    ],
)
def test_a_file_that_is_no_database_of_runs_is_refused_and_unchanged(
    tmp_path: Path, write: Callable[[Path], None], said: str
) -> None:
    file = tmp_path / "file.sqlite"
    write(file)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=said):
        Reader(file)
    with pytest.raises(UsageError, match=said):
        Reader(f"sqlite+pysqlite:///{file.as_posix()}")
    assert everything(tmp_path) == before


def test_report_refuses_it_in_one_line(tmp_path: Path) -> None:
    browser(tmp_path / "cookies.sqlite")
    before = everything(tmp_path)
    command = [sys.executable, "-m", "rightbatch", "report", "cookies.sqlite"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert "not one of MLflow's" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == before


def test_a_study_does_not_add_its_tables_to_the_database_of_another_program(
    tmp_path: Path,
) -> None:
    for write in (browser, text, older):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder / DATABASE)
        before = everything(folder)
        with pytest.raises(UsageError, match=r"mlflow\.db"):
            Store.open(folder, "digits")
        assert everything(folder) == before


class TestAStudysDatabase:
    def test_is_read_without_writing_even_if_it_is_read_only(self, tmp_path: Path) -> None:
        finished(store_in(tmp_path), RunKey(8, 0))
        before = everything_in_database(tmp_path)
        (tmp_path / DATABASE).chmod(stat.S_IRUSR)
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            with Reader(tmp_path) as reader:
                assert len(reader.read()) == 1
        finally:
            tmp_path.chmod(stat.S_IRWXU)
        assert everything_in_database(tmp_path) == before

    def test_is_read_from_a_copy_after_a_writer_was_killed(self, tmp_path: Path) -> None:
        finished(store_in(tmp_path), RunKey(8, 0))
        writer = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
        writer.execute("pragma cache_size = 1")  # dirty pages are written before the commit
        writer.execute("begin immediate")
        writer.execute("delete from runs")
        writer.execute("create table filler (x)")
        for _ in range(200):
            writer.execute("insert into filler values (zeroblob(4000))")
        killed = tmp_path / "killed"
        killed.mkdir()
        for end in ("", "-journal"):
            shutil.copy(tmp_path / f"{DATABASE}{end}", killed)
        writer.execute("rollback")
        writer.close()
        before = everything(killed)
        with Reader(killed) as reader:
            assert len(reader.read()) == 1
            assert len(reader.runs()) == 1
            reader.revision()
        assert everything(killed) == before

    def test_is_refused_where_it_cannot_be_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finished(store_in(tmp_path), RunKey(8, 0))
        killed = tmp_path / "killed"
        killed.mkdir()
        shutil.copy(tmp_path / DATABASE, killed)
        change(killed / DATABASE, "pragma journal_mode = wal")
        log = killed / f"{DATABASE}-wal"
        log.write_bytes(b"not empty")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        with pytest.raises(UsageError, match=r"cannot be read as a SQLite database.*missing"):
            Reader(killed)
        monkeypatch.undo()
        log.unlink()
        log.mkdir()  # as one that cannot be read
        with pytest.raises(UsageError, match=r"cannot be read as a SQLite database.*-wal"):
            Reader(killed)

    @pytest.mark.parametrize("is_open", [True, False])
    def test_may_have_a_write_ahead_log(self, tmp_path: Path, is_open: bool) -> None:
        folder = tmp_path / "study"
        store = store_in(folder)
        writer = sqlite3.connect(folder / DATABASE, isolation_level=None)
        writer.execute("pragma journal_mode = wal")
        finished(store, RunKey(8, 0))
        if not is_open:
            writer.close()
            store._client._tracking_client.store.engine.dispose()
        before = everything_in_database(folder)
        with Reader(folder) as reader:
            assert len(reader.read()) == 1
            if not is_open:
                assert everything_in_database(folder) == before
            finished(store, RunKey(8, 1))
            assert len(reader.read()) == 2
        writer.close()


def everything_in_database(folder: Path) -> dict[str, bytes]:
    return {
        name: data
        for name, data in ((p.name, p.read_bytes()) for p in folder.iterdir() if p.is_file())
        if name.startswith(DATABASE) and not name.endswith("-shm")
    }


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


class TestAFoldersStoreJson:
    def point(self, folder: Path, uri: str) -> None:
        folder.mkdir()
        (folder / POINTER).write_text(json.dumps({"schema": 1, "uri": uri, "study": "a" * 32}))

    def test_does_not_send_a_token_to_the_host_that_it_names(
        self, tmp_path: Path, listener: socket.socket
    ) -> None:
        port = listener.getsockname()[1]
        self.point(tmp_path / "given", f"http://127.0.0.1:{port}")
        environment = os.environ | {"MLFLOW_TRACKING_TOKEN": "secret"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-m", "rightbatch", "report", "given"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 2
        assert f"http://127.0.0.1:{port}" in done.stderr
        assert "--store" in done.stderr
        with pytest.raises(TimeoutError):
            listener.accept()

    @pytest.mark.parametrize(
        "uri",
        [
            "sqlite:///{}/elsewhere/new.db",
            "sqlite:///{}/given/../elsewhere/new.db",
            "sqlite+pysqlite:///{}/elsewhere/new.db",
            "file://{}/elsewhere/mlruns",
            "postgresql://127.0.0.1:1/mlflow",
            "databricks",
            "https://example.invalid",
        ],
    )
    def test_makes_nothing_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        self.point(tmp_path / "given", uri.format(tmp_path.as_posix()))
        with pytest.raises(UsageError, match="outside of the folder"):
            Reader(tmp_path / "given")
        assert [path.name for path in tmp_path.iterdir()] == ["given"]
        assert [path.name for path in (tmp_path / "given").iterdir()] == [POINTER]

    def test_is_not_followed_through_a_link_either(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder_with_database(tmp_path / "elsewhere")
        self.point(tmp_path / "given", f"sqlite:///{tmp_path.as_posix()}/given/link/{DATABASE}")
        (tmp_path / "given" / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="outside of the folder"):
            Reader(tmp_path / "given")

    def test_a_store_that_the_user_names_is_not_created_by_reading(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.point(tmp_path / "given", "http://127.0.0.1:1")
        missing = uri_of(tmp_path / "elsewhere" / "new.db")
        with pytest.raises(UsageError, match="there is no database"):
            Reader(tmp_path / "given", store=missing)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", missing)
        with pytest.raises(UsageError, match="there is no database"):
            Reader(tmp_path / "given")
        assert not (tmp_path / "elsewhere").exists()


def test_a_studys_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot write into the folder"):
            Store.open(out, "digits")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_instead_of_the_pointer_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / POINTER)
    assert read_pointer(tmp_path) is None
