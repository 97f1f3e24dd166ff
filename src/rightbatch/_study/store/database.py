"""MLflow's store: addresses, creating a database, and retrying while a store is busy."""

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
from urllib.parse import unquote, urlsplit

from rightbatch._errors import MissingExtraError, RightbatchError, UsageError

DATABASE = "mlflow.db"

POINTER = "store.json"
"""In a study's folder where its runs are elsewhere: which store, and which of the runs there."""

PAUSES = (0.5, 2.0, 5.0)
"""Seconds between attempts while a store says that it is busy; MLflow itself waits 20 s for
SQLite."""

SILENCE = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_QUIET = threading.RLock()
"""`quiet` changes what the whole process shares."""

T = TypeVar("T")


def environment_uri() -> str | None:
    """The store that the environment names."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def uri_of(database: Path) -> str:
    """MLflow's URI of a database file.

    Raises:
        UsageError: if the path cannot be part of one.
    """
    path = database.resolve()
    if {"?", "%"} & set(path.as_posix()):
        raise UsageError(
            f"{path}: MLflow's database cannot be in a folder with `?` or `%` in its name; "
            "use another folder"
        )
    return f"sqlite:///{path.as_posix()}"


def path_of(uri: str) -> Path | None:
    """The database file of a SQLite URI; None for other stores and for databases in memory."""
    if not uri.startswith("sqlite:///") or uri.startswith("sqlite:///file:"):
        return None
    database = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(database) if database and database != ":memory:" else None


def without_password(uri: str) -> str:
    """A URI to show."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)


def is_database(uri: str) -> bool:
    """Whether MLflow opens this store with SQL."""
    return urlsplit(uri).scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def check_tables(uri: str) -> None:
    """Check that a database has all of MLflow's tables; opening it would create those it lacks.

    Raises:
        MissingExtraError: MLflow is not installed.
        UsageError: if it has not, or cannot be read.
    """
    try:
        import mlflow.store.db.utils  # noqa: F401  which fills `Base.metadata`
        import sqlalchemy
        from mlflow.store.db.base_sql_model import Base
    except ImportError as error:
        raise MissingExtraError("mlflow", "study") from error
    shown = without_password(uri)
    try:
        engine = sqlalchemy.create_engine(uri)
        try:
            found = set(sqlalchemy.inspect(engine).get_table_names())
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise UsageError(f"the database {shown} cannot be read: {reason}") from error
    missing = set(Base.metadata.tables) - found
    if not missing:
        return
    if {"experiments", "runs", "alembic_version"} <= found:
        raise UsageError(
            f"{shown} is a database of another MLflow, without {', '.join(sorted(missing)[:5])}; "
            f"take a backup and run `mlflow db upgrade {shown}`, or use another store"
        )
    raise UsageError(
        f"{shown} is not a database of MLflow's: it has no table "
        f"{', '.join(sorted(missing)[:5])}; use another store"
    )


def read_pointer(folder: Path) -> dict[str, Any] | None:
    """The `store.json` of a folder whose runs are elsewhere; None if there is none."""
    path = folder / POINTER
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        content = json.loads(path.read_text("utf-8"))
        return {"uri": str(content["uri"]), "study": str(content["study"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def open_client(uri: str) -> Any:
    """MLflow's client of a store. A missing database is created, whole or not at all.

    Raises:
        MissingExtraError: MLflow is not installed.
        UsageError: MLflow refuses the store; the message has its own. A database of another program
            is refused before MLflow adds its tables to it.
    """
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError("mlflow", "study") from error
    database = path_of(uri)
    try:
        if database is not None and not database.exists():
            _create(database)
        elif database is not None and (not database.is_file() or database.stat().st_size):
            check_tables(uri)
        with quiet():
            return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise UsageError(
            f"MLflow cannot open the store {without_password(uri)}: {error}"
        ) from error


def retry(call: Callable[[], T]) -> T:
    """Call a store, and call again while it is busy: all of our writes can be repeated.

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
    """Keep MLflow from printing addresses, progress and the steps of creating a database; warnings
    and errors are still logged."""
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
    """Create it in a temporary folder and move it into place at the end.

    A process that is killed while MLflow builds the tables would leave a database that MLflow can
    neither use nor complete. Nothing is synced until the end, which saves four fifths of the time.
    """
    from mlflow.tracking import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=database.parent) as aside:
        new = Path(aside) / database.name
        engines: set[Any] = set()

        def without_sync(connection: Any) -> None:
            if connection.engine.url.database == new.as_posix():
                engines.add(connection.engine)
                connection.connection.driver_connection.execute("PRAGMA synchronous = OFF")

        event.listen(Engine, "engine_connect", without_sync)
        try:
            with quiet():
                MlflowClient(tracking_uri=uri_of(new))
        finally:
            event.remove(Engine, "engine_connect", without_sync)
            for engine in engines:
                engine.dispose()
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        _place(new, database)


def _place(new: Path, database: Path) -> None:
    """Keep the database of another process that was first: it may already hold runs."""
    try:
        os.link(new, database)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not database.exists():
            new.replace(database)
