"""Writers in native code, which audit hooks do not see: torch, safetensors and SQLite."""

from __future__ import annotations

import functools
from typing import Any

from .files import Guard
from .imports import after_import

_WRITING = {1, 2, 7, 8, 9, 10, 11, 16, 17, 18, 23, 26, 27}
"""SQLite's codes of actions that change a database: SQLITE_CREATE_INDEX to SQLITE_REINDEX, without
those on temporary tables (https://www.sqlite.org/c3ref/c_alter_table.html)."""
_OK = 0


def protect(guard: Guard) -> None:
    """Let the guard check the files of safetensors and of SQLite."""
    after_import("safetensors", lambda module: _check(guard, module, "serialize_file", "filename"))
    after_import("sqlite3", lambda module: _protect_databases(guard, module))


def protect_torch(guard: Guard, torch: Any) -> None:
    """Let the guard check the files of torch."""
    _check(guard, torch, "save", "f")
    _check(guard, torch.jit, "save", "f")


def _check(guard: Guard, owner: Any, name: str, keyword: str) -> None:
    """Check the second argument of a function, which has a `keyword`, before it is called."""
    write = getattr(owner, name)

    @functools.wraps(write)
    def check_and_write(*arguments: Any, **keywords: Any) -> Any:
        guard.check(arguments[1] if len(arguments) > 1 else keywords.get(keyword))
        return write(*arguments, **keywords)

    setattr(owner, name, check_and_write)


def _protect_databases(guard: Guard, sqlite3: Any) -> None:
    """End the trial before a statement that changes a database of the user's; reading is free."""
    connect = sqlite3.connect

    @functools.wraps(connect)
    def connect_and_check(database: Any, *arguments: Any, **keywords: Any) -> Any:
        path = _path_of(database)
        is_of_the_user = guard.is_of_the_user(path)
        if not is_of_the_user and path != ":memory:":
            guard.check(path)  # a file that the trial makes
        connection = connect(database, *arguments, **keywords)
        if is_of_the_user:
            connection.set_authorizer(authorizer(path))
        return connection

    def authorizer(path: Any) -> Any:
        def authorize(action: int, _: Any, __: Any, database: Any, ___: Any) -> int:
            if action in _WRITING and database != "temp":
                guard.check(path)
            return _OK

        return authorize

    sqlite3.connect = sqlite3.dbapi2.connect = connect_and_check


def _path_of(database: Any) -> Any:
    """Return the path in a URI such as `file:results.db?mode=rw`, or the path as it is given."""
    if isinstance(database, str) and database.startswith("file:"):
        from urllib.parse import unquote, urlsplit

        return unquote(urlsplit(database).path)
    return database
