"""JSON documents beside runs, as MLflow's artifacts: whole, or not there."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rightbatch._study.store.database import quiet, retry


class Artifacts:
    """The documents of a store.

    Args:
        client: MLflow's.
        root: the folder below which they are, if it is at hand. MLflow's own copy can be cut in two
            by a kill, and goes to where the folder was when the study began, should it have moved
            since; so they are written here, to the places that MLflow knows.
    """

    def __init__(self, client: Any, root: Path | None) -> None:
        self._client = client
        self._root = root

    def put(self, run: str, name: str, document: Mapping[str, Any]) -> None:
        """Writes a document; one of that name is replaced."""
        text = as_json(document)
        if self._root is not None:
            write_whole(self._root / run / "artifacts" / name, text)
        else:
            retry(lambda: self._client.log_text(run, text, name))

    def get(self, run: str, name: str) -> dict[str, Any] | None:
        """Reads a document; None where there is none that reads."""
        try:
            if self._root is not None:
                text = (self._root / run / "artifacts" / name).read_text("utf-8")
            else:
                text = self._fetched(run, name)
            found = json.loads(text)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _fetched(self, run: str, name: str) -> str:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder, quiet():
            try:
                path = self._client.download_artifacts(run, name, folder)
            except MlflowException as error:
                raise FileNotFoundError(name) from error
            return Path(path).read_text("utf-8")


def as_json(document: Mapping[str, Any]) -> str:
    """JSON, where what is no number is null."""
    return json.dumps(_finite(document), ensure_ascii=False, allow_nan=False)


def write_whole(path: Path, text: str) -> None:
    """The whole file, or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(name): _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
