"""A SQLite file that is only read: opened without a byte written to it or made beside it.

A file of another program is refused before anything but its schema is read. Where SQLite itself
would have to write (to roll back what a killed writer left half done, or to index a write-ahead
log), a copy in a temporary folder is read instead.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Mapping, Set
from contextlib import closing
from pathlib import Path

from rightbatch._errors import UsageError

TABLES: Mapping[str, Set[str]] = {
    "experiments": {"experiment_id", "name", "lifecycle_stage"},
    "runs": {"run_uuid", "name", "experiment_id", "status", "start_time", "lifecycle_stage"},
    "tags": {"run_uuid", "key", "value"},
    "params": {"run_uuid", "key", "value"},
    "metrics": {"run_uuid", "key", "step", "timestamp", "value", "is_nan"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan", "step", "timestamp"},
}
"""MLflow's tables and columns that are read."""

_MAGIC = b"SQLite format 3\x00"
_WAL_VERSION = 2  # byte 18 of a file that is written through a write-ahead log

Key = tuple[str, ...]


class SqliteFile:
    """Connections to a database file of MLflow's. Not safe to use from several threads.

    Raises:
        UsageError: if the file is not a database of MLflow's with `TABLES`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._key: Key = ()
        self._copy: weakref.finalize[..., SqliteFile] | None = None  # which removes it
        try:
            self._check()
        except (sqlite3.Error, OSError, UsageError) as error:
            self.close()
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path} cannot be read as a SQLite database: {error}") from error

    def open(self) -> sqlite3.Connection:
        """Return a connection that sees what is committed now; it stays open between two calls.

        Raises:
            sqlite3.Error: if the file cannot be read.
            UsageError: if it is no database any more.
        """
        key = self._mode()
        if self._connection is None or key != self._key:
            self.close()
            self._connection, self._key = self._connect(key), key
        if key[0] == "shared":
            try:
                self._connection.execute("select 1 from sqlite_master limit 1").fetchone()
            except sqlite3.OperationalError as error:
                # A writer was killed and only a writer may roll back, or the folder is read-only.
                name = error.sqlite_errorname
                left = [end for end in ("-journal", "-wal") if _size(self._beside(end))]
                if not left or not name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                    raise
                self.close()
                self._connection = self._copied(left[0])
                self._key = self._mode()
        return self._connection

    def close(self) -> None:
        """Close the connection; `open` opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._copy is not None:
            self._copy()
            self._copy = None

    def _mode(self) -> Key:
        """How to open it without writing; the key differs when it must be opened again."""
        try:
            with self._path.open("rb") as file:
                header = file.read(20)
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror}") from error
        if not header:
            raise UsageError(f"{self._path} is empty: it is not a database of runs")
        if not header.startswith(_MAGIC) or len(header) < 20:
            raise UsageError(f"{self._path} is not a SQLite database")
        if header[18] != _WAL_VERSION:
            if self._copy is not None:  # until a writer has rolled back
                return ("shared", _stamp(self._beside("-journal")))
            return ("shared", "")
        if not _size(self._beside("-wal")):  # all writers have closed it
            return ("unchanging", _stamp(self._path))
        if self._beside("-shm").exists():  # a writer has it open
            return ("shared",)
        return ("copied", _stamp(self._path), _stamp(self._beside("-wal")))

    def _connect(self, key: Key) -> sqlite3.Connection:
        if key[0] == "copied":
            return self._copied("-wal")
        immutable = "&immutable=1" if key[0] == "unchanging" else ""
        return _connection(self._path, f"mode=ro{immutable}")

    def _copied(self, suffix: str) -> sqlite3.Connection:
        """Open a copy of the file and of its journal, which SQLite then completes there."""
        folder = tempfile.mkdtemp(prefix="rightbatch-")
        self._copy = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        copy = Path(folder) / "copy.db"
        for end in ("", suffix):
            shutil.copyfile(self._beside(end), copy.with_name(copy.name + end))
        return _connection(copy, "mode=rw")

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _check(self) -> None:
        """Check the schema, first through a connection that cannot change anything."""
        self._mode()
        has_journal = any(_size(self._beside(end)) for end in ("-wal", "-journal"))
        found: dict[str, set[str]] = {}
        try:
            with closing(_connection(self._path, "mode=ro&immutable=1")) as connection:
                found = _columns(connection)
        except sqlite3.DatabaseError:
            if not has_journal:
                raise
        if has_journal and (not found or TABLES.keys() <= found.keys()):
            found = _columns(self.open())  # new tables may be in the log only
        missing: list[str] = []
        for table, columns in TABLES.items():
            if table in found:
                missing += [f"{table}.{column}" for column in sorted(columns - found[table])]
            else:
                missing.append(table)
        if not missing:
            return
        if {"experiments", "runs", "alembic_version"} <= found.keys():
            copy = self._path.with_name(f"{self._path.stem}-copy{self._path.suffix}")
            raise UsageError(
                f"{self._path} is a database of an older MLflow, without {', '.join(missing)}; "
                f"copy it and upgrade the copy: `cp {self._path} {copy}`, then "
                f"`mlflow db upgrade sqlite:///{copy.as_posix()}`"
            )
        raise UsageError(
            f"{self._path} is a SQLite database, but not one of MLflow's runs: it has no "
            f"{', '.join(missing)}"
        )


def _connection(path: Path, query: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=20,
        check_same_thread=False,
        isolation_level=None,
    )
    connection.execute("pragma query_only = on")
    connection.execute("pragma trusted_schema = off")
    return connection


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Columns by table; views and virtual tables, which may run code, do not count."""
    query = "select name from sqlite_master where type = 'table' and rootpage > 0"
    names = [name for (name,) in connection.execute(query).fetchall()]
    return {
        name: {
            column
            for (column,) in connection.execute("select name from pragma_table_info(?)", (name,))
        }
        for name in names
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns:x}.{found.st_size:x}"
