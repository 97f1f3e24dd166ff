"""Stores that can be opened to read runs, and which of their runs to read."""

from __future__ import annotations

import json
import os
import re
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from rightbatch._errors import UsageError
from rightbatch._study.records import Target
from rightbatch._study.store.database import (
    DATABASE,
    POINTER,
    check_tables,
    environment_uri,
    is_database,
    open_client,
    path_of,
    read_pointer,
    uri_of,
    without_password,
)
from rightbatch._study.store.mlflow_source import MlflowSource, RunSource
from rightbatch._study.store.sqlite_source import SqliteSource

FILE_STORE = "mlruns"

REMEDY = "`rightbatch study W --batches ... --out DIR` makes a store of runs in DIR"

SERVER_TIMEOUT = 5.0
"""Seconds in which a tracking server must answer; MLflow itself would retry for minutes."""


@dataclass(frozen=True)
class Location:
    """A store. `database` is its file if it is one, `study` the run of a study that a folder
    names, `artifacts` the folder of its documents if it is not beside the database."""

    uri: str
    name: str
    database: Path | None = None
    study: str | None = None
    artifacts: Path | None = None


@dataclass(frozen=True)
class Scope:
    """Which runs to read: those of `experiments` that have all of the `tags`."""

    experiments: list[str]
    tags: dict[str, str]
    title: str
    target: Target | None = None


def locate(source: str | os.PathLike[str], store: str | None = None) -> Location:
    """Find the store in a folder, a file or a URI.

    `store` is the URI of the store that a folder's `store.json` may name. The file alone is not
    followed out of its folder: another person may have written it.

    Raises:
        UsageError: if there is none, the folder names one elsewhere and the user did not, or
            `store` is given beside a database file or a URI.
    """
    text = os.fspath(source)
    path = None if "://" in text else Path(text).expanduser().absolute()
    if path is None or (path.exists() and not path.is_dir()):
        if store is not None:
            raise UsageError("--store goes with a study's folder; give one of the two")
        return _of_uri(text) if path is None else _of_database(path)
    pointed = read_pointer(path)
    given = store or environment_uri()
    if pointed is not None and (given or not (path / DATABASE).exists()):
        return _of_pointer(path, pointed, given)
    if store is not None:
        raise UsageError(f"{path / POINTER} names no study in {store}: leave the folder out")
    if (path / DATABASE).exists():
        return _of_database(path / DATABASE)
    for folder in (path, path / FILE_STORE):
        if _is_file_store(folder):
            return Location(folder.as_uri(), path.name)
    if not path.exists():
        raise UsageError(f"there is no {text!r}; {REMEDY}")
    raise UsageError(
        f"{text!r} has no runs: neither {DATABASE} nor {FILE_STORE} is in it; {REMEDY}"
    )


def open_source(location: Location) -> RunSource:
    """Open a store to read its runs.

    Raises:
        MissingExtraError: without MLflow, where the store is not a database file.
        UsageError: if it cannot be read; the message says what to do.
    """
    if location.database is not None:
        return SqliteSource(location.database, location.artifacts)
    if location.uri.startswith(("http://", "https://")):
        _check_answers(location.uri)
    elif is_database(location.uri):
        check_tables(location.uri)
    try:
        return MlflowSource(open_client(location.uri))
    except UsageError as error:
        if not location.uri.startswith("file:"):
            raise
        folder = Path(urllib.request.url2pathname(urlsplit(location.uri).path))
        target = folder.parent / DATABASE
        raise UsageError(
            f"{folder} holds runs as files, which this MLflow no longer opens; "
            f"`mlflow migrate-filestore --source {folder} --target sqlite:///{target.as_posix()}` "
            f"copies them to a database, which can be opened; or set MLFLOW_ALLOW_FILE_STORE=true"
        ) from error


def find_scope(source: RunSource, name: str, experiment: str | None, study: str | None) -> Scope:
    """Which runs of a store to read: of a named experiment all, else those of a study, else all.

    Raises:
        UsageError: if there is no such experiment or study.
    """
    experiments = source.experiments()
    if experiment is not None:
        for id, title in experiments.items():
            if title == experiment:
                return Scope([id], {}, experiment)
        names = ", ".join(map(repr, sorted(experiments.values())))
        raise UsageError(f"there is no experiment {experiment!r}; there are {names}")
    if study is None:
        studies = source.search([*experiments], {"rightbatch.kind": "study"})
        if not studies:
            return Scope([*experiments], {}, name)
        parent = studies[-1]
    elif (found := source.get(study)) is not None:
        parent = found
    else:
        raise UsageError(f"the store has no run {study}, which {name} names as its study")
    return Scope(
        [parent.experiment],
        {"mlflow.parentRunId": parent.id},
        parent.tags.get("rightbatch.title") or name,
        _target(parent.tags.get("rightbatch.target", "")),
    )


def _target(text: str) -> Target | None:
    try:
        target = json.loads(text)
        return Target(str(target["metric"]), float(target["value"]))
    except (ValueError, KeyError, TypeError):
        return None


def _of_pointer(folder: Path, pointed: dict[str, str], given: str | None) -> Location:
    uri = given or pointed["uri"]
    if given is None and not _is_inside(uri, folder):
        shown = without_password(uri)
        raise UsageError(
            f"{folder / POINTER} says that the runs are in {shown!r}, outside of the folder; if "
            f"you trust it, name that store yourself: `--store {shown}` beside the folder, or "
            f"MLFLOW_TRACKING_URI={shown}"
        )
    found = _of_uri(uri)
    return replace(found, name=folder.name, study=pointed["study"], artifacts=folder / "artifacts")


def _is_inside(uri: str, folder: Path) -> bool:
    database = path_of(uri)
    return database is not None and database.resolve().is_relative_to(folder.resolve())


def _of_uri(uri: str) -> Location:
    driver = re.match(r"sqlite\+\w+:", uri)
    if driver is not None:
        uri = f"sqlite:{uri[driver.end() :]}"
    if uri.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urlsplit(uri).path))
        if not _is_file_store(folder):  # MLflow would make one
            raise UsageError(f"{uri!r} has no runs; {REMEDY}")
    if uri.startswith("sqlite:"):
        database = path_of(uri)
        if database is None:
            raise UsageError(f"{uri!r} names no file; expected sqlite:///PATH")
        return _of_database(database.absolute())
    return Location(uri, without_password(uri))


def _of_database(path: Path) -> Location:
    if not path.exists():
        raise UsageError(f"there is no database {path}; {REMEDY}")
    if not path.is_file():
        raise UsageError(f"{path} is not a file: it cannot be a database of runs")
    return Location(uri_of(path), path.parent.name if path.name == DATABASE else path.name, path)


def _is_file_store(folder: Path) -> bool:
    return any(
        found.parent.name.isdigit() for found in folder.glob("*/meta.yaml") if found.is_file()
    )


def _check_answers(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_TIMEOUT):
            return
    except urllib.error.HTTPError:  # it answers; a server need not have this address
        return
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # MLflow's own settings know which certificates to trust
        raise UsageError(
            f"no tracking server answers at {without_password(uri)} ({error}); "
            "`mlflow server` starts one"
        ) from error
