"""JSON documents of runs, stored as MLflow's artifacts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rightbatch._study.json_text import to_json
from rightbatch._study.store.database import quiet, retry


class Artifacts:
    """The documents of a store.

    Args:
        client: MLflow's.
        root: the folder of all artifacts, if it is on this machine. They are then written here, to
            the paths that MLflow knows: a kill can leave half of a file that MLflow copies, and
            MLflow writes to where the folder was when the study began.
    """

    def __init__(self, client: Any, root: Path | None) -> None:
        self._client = client
        self._root = root

    def put(self, run: str, name: str, document: Mapping[str, Any]) -> None:
        """Write a document; one of that name is replaced."""
        text = to_json(document)
        if self._root is not None:
            write_file(self._root / run / "artifacts" / name, text)
        else:
            retry(lambda: self._client.log_text(run, text, name))

    def get(self, run: str, name: str) -> dict[str, Any] | None:
        """Read a document; None if there is none that can be parsed."""
        try:
            if self._root is not None:
                text = (self._root / run / "artifacts" / name).read_text("utf-8")
            else:
                text = self._download(run, name)
            document = json.loads(text)
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def _download(self, run: str, name: str) -> str:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder, quiet():
            try:
                path = self._client.download_artifacts(run, name, folder)
            except MlflowException as error:
                raise FileNotFoundError(name) from error
            return Path(path).read_text("utf-8")


def write_file(path: Path, text: str) -> None:
    """Write a file whole: another reader sees the new text or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    beside.replace(path)
