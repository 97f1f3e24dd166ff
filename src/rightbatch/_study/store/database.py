"""MLflow on SQLite: where a folder's database is, how it is made, what to do while it is locked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rightbatch._errors import MissingExtraError, RightbatchError, UsageError

DATABASE = "mlflow.db"

POINTER = "store.json"
"""In a study's folder where its runs are elsewhere: which store, and which of the runs there."""

PAUSES = (0.5, 2.0, 5.0)
"""Seconds between tries at a store that says it is busy; MLflow itself waits 20 s for SQLite."""

SILENCE = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_QUIET = threading.RLock()
"""What `quiet` changes is the whole process's."""

T = TypeVar("T")


def chosen_uri() -> str | None:
    """The store that the environment asks for."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def uri_of(database: Path) -> str:
    """What MLflow calls a database file."""
    path = database.resolve()
    uri = f"sqlite:///{path.as_posix()}"
    if path_of(uri) != path:
        raise UsageError(
            f"{path}: MLflow's database cannot be in a folder with `?` or `%` in its name; "
            "name another"
        )
    return uri


def path_of(uri: str) -> Path | None:
    """The database file, where it is one of SQLite's."""
    from sqlalchemy import make_url

    if not uri.startswith("sqlite:///") or uri.startswith("sqlite:///file:"):
        return None
    database = make_url(uri).database
    return Path(database) if database and database != ":memory:" else None


def shown(uri: str) -> str:
    """Without a password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)


def pointer(folder: Path) -> dict[str, Any] | None:
    """What is written in a folder whose runs are elsewhere."""
    try:
        told = json.loads((folder / POINTER).read_text("utf-8"))
        return {"uri": str(told["uri"]), "study": str(told["study"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_client(uri: str) -> Any:
    """A client of a store. A database that is missing is made, whole or not at all.

    Raises:
        MissingExtraError: MLflow is not installed.
        UsageError: MLflow refuses the store; its own words say why.
    """
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        database = path_of(uri)
    except ImportError as error:
        raise MissingExtraError("mlflow", "study") from error
    try:
        if database is not None and not database.exists():
            _create(database)
        with quiet():
            return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise UsageError(f"MLflow cannot open the store {shown(uri)}: {error}") from error


def tried(call: Callable[[], T]) -> T:
    """Calls a store, and calls again while it is busy: every write of ours can be repeated.

    Raises:
        RightbatchError: the store refused, or was still busy after the last pause.
    """
    from mlflow.exceptions import MlflowException

    for pause in (*PAUSES, None):
        try:
            return call()
        except MlflowException as error:
            if pause is None or error.error_code != "TEMPORARILY_UNAVAILABLE":
                raise RightbatchError(
                    f"the run store refused: {str(error).splitlines()[0]}"
                ) from error
        time.sleep(pause)
    raise AssertionError  # the last pause is None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """MLflow prints addresses and progress, and tells of every step of making a database; what is
    worse than that still comes."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime")]
    with _QUIET:
        levels = [logger.level for logger in loggers]
        before = {name: os.environ.get(name) for name in SILENCE}
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            os.environ.update(SILENCE)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _create(database: Path) -> None:
    """Made aside and put in place at the end: a process that is killed while MLflow builds the
    tables would leave a database that MLflow can neither use nor complete. Nothing is synced on
    the way, which is four fifths of the time."""
    from mlflow.tracking import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=database.parent) as aside:
        new = Path(aside) / database.name
        engines: set[Any] = set()

        def hurry(connection: Any) -> None:
            if connection.engine.url.database == new.as_posix():
                engines.add(connection.engine)
                connection.connection.driver_connection.execute("PRAGMA synchronous = OFF")

        event.listen(Engine, "engine_connect", hurry)
        try:
            with quiet():
                MlflowClient(tracking_uri=uri_of(new))
        finally:
            event.remove(Engine, "engine_connect", hurry)
            for engine in engines:
                engine.dispose()
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        _place(new, database)


def _place(new: Path, database: Path) -> None:
    """Unless another process was first: its database may hold runs already."""
    try:
        os.link(new, database)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not database.exists():
            new.replace(database)
