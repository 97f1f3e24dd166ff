"""What can be opened to read runs, and which of its runs are meant."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._study.records import Target
from rightbatch._study.store.database import (
    DATABASE,
    chosen_uri,
    open_client,
    path_of,
    pointer,
    shown,
    uri_of,
)
from rightbatch._study.store.mlflow_runs import search

FILE_STORE = "mlruns"

REMEDY = "`rightbatch study W --batches ... --out DIR` makes a store of runs in DIR"

PATIENCE = 5.0
"""Seconds in which a tracking server has to answer before MLflow, which tries for minutes, asks."""


@dataclass(frozen=True)
class Place:
    """A store. `database` is its file where it is one, `study` the run that a folder names."""

    uri: str
    name: str
    database: Path | None = None
    study: str | None = None


@dataclass(frozen=True)
class Scope:
    """Which runs are meant: of which `experiments`, and those that `wanted`, MLflow's filter,
    lets through."""

    experiments: list[str]
    wanted: str
    title: str
    target: Target | None = None


def place_of(source: str | os.PathLike[str]) -> Place:
    """Finds what there is to read.

    Raises:
        UsageError: if there is nothing.
    """
    text = os.fspath(source)
    if "://" in text:
        return _of_uri(text)
    path = Path(text).expanduser().absolute()
    if path.is_file():
        return _of_database(path)
    told = pointer(path)
    if told is not None and (chosen_uri() or not (path / DATABASE).exists()):
        return Place(chosen_uri() or told["uri"], path.name, study=told["study"])
    if (path / DATABASE).exists():
        return _of_database(path / DATABASE)
    for folder in (path, path / FILE_STORE):
        if _is_file_store(folder):
            return Place(folder.as_uri(), path.name)
    if not path.exists():
        raise UsageError(f"there is no {text!r}; {REMEDY}")
    raise UsageError(
        f"{text!r} has no runs: neither {DATABASE} nor {FILE_STORE} is in it; {REMEDY}"
    )


def client_of(place: Place) -> Any:
    """A client of a store that is there.

    Raises:
        MissingExtraError: without MLflow.
        UsageError: if it cannot be read; the message says what to do.
    """
    if place.uri.startswith(("http://", "https://")):
        _check_answers(place.uri)
    try:
        return open_client(place.uri)
    except MissingExtraError:
        raise
    except UsageError as error:
        if not place.uri.startswith("file:"):
            raise
        folder = Path(urllib.request.url2pathname(urlsplit(place.uri).path))
        target = folder.parent / DATABASE
        raise UsageError(
            f"{folder} holds runs as files, which this MLflow does not open any more; "
            f"`mlflow migrate-filestore --source {folder} --target sqlite:///{target.as_posix()}` "
            f"copies them to a database, which can be opened; or set MLFLOW_ALLOW_FILE_STORE=true"
        ) from error


def scope_of(client: Any, name: str, experiment: str | None, study: str | None) -> Scope:
    """Which runs of a store are meant: of a named experiment all, else those of a study, else all.

    Raises:
        UsageError: if the experiment is not there.
    """
    experiments = list(client.search_experiments())
    if experiment is not None:
        for one in experiments:
            if one.name == experiment:
                return Scope([one.experiment_id], "", experiment)
        names = ", ".join(repr(one.name) for one in experiments)
        raise UsageError(f"there is no experiment {experiment!r}; there are {names}")
    every = [one.experiment_id for one in experiments]
    if study is not None:
        parent = client.get_run(study)
    else:
        found = search(client, every, "tags.`rightbatch.kind` = 'study'", most=1)
        if not found:
            return Scope(every, "", name)
        parent = found[0]
    return Scope(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
        parent.data.tags.get("rightbatch.title") or name,
        _target(parent.data.tags.get("rightbatch.target", "")),
    )


def _target(told: str) -> Target | None:
    try:
        target = json.loads(told)
        return Target(str(target["metric"]), float(target["value"]))
    except (ValueError, KeyError, TypeError):
        return None


def _of_uri(uri: str) -> Place:
    if uri.startswith("sqlite:"):
        try:
            database = path_of(uri)
        except ImportError as error:
            raise MissingExtraError("mlflow", "study") from error
        if database is None:
            raise UsageError(f"{uri!r} names no file; expected sqlite:///PATH")
        return _of_database(database.absolute())
    return Place(uri, shown(uri))


def _of_database(path: Path) -> Place:
    if not path.exists():
        raise UsageError(f"there is no database {path}; {REMEDY}")
    try:
        uri = uri_of(path)
    except ImportError as error:
        raise MissingExtraError("mlflow", "study") from error
    return Place(uri, path.parent.name if path.name == DATABASE else path.name, path)


def _is_file_store(folder: Path) -> bool:
    return any(
        found.parent.name.isdigit() for found in folder.glob("*/meta.yaml") if found.is_file()
    )


def _check_answers(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE):
            return
    except urllib.error.HTTPError:  # it answers; what it says of this address is its own
        return
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # MLflow's own settings know which certificates to trust
        raise UsageError(
            f"no tracking server answers at {shown(uri)} ({error}); `mlflow server` starts one"
        ) from error
