"""A study as one HTML file: the page with all of its data, which opens without a network.

Plotly's script and the documents are compressed in it, so that it can be mailed; browsers of 2023
or newer unpack them. With too many runs for that, the curves get fewer points.
"""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._study.json_text import to_json
from rightbatch._study.web import template
from rightbatch._study.web.bundle import bundle
from rightbatch._study.web.documents import Documents, LiveRuns, StudyDocuments

LARGEST = 6_000_000
"""Bytes of the file at most."""

_RUN_PLACES, _METRIC_PLACES = 1000, 300
"""Points of a run's own curve, and of a metric's by batch size, if there is room."""
_LEAST = 10
"""Points of a curve; with fewer it is left out."""
_NUMBERS, _BYTES = 5, 2
"""Numbers in a point of a run's curve, and compressed bytes of a number: a low estimate."""
_DIGITS = 5
"""Significant digits of a curve's values: more than a picture shows."""


def write_report(source: LiveRuns | Documents, path: str | os.PathLike[str]) -> Path:
    """Write the report; an existing file is replaced once the new one is complete.

    Args:
        source: a store of runs, or the documents of one.
        path: the file, `*.html`.

    Returns:
        The file's path.

    Raises:
        UsageError: if the file cannot be written.
        MissingExtraError: if Jinja2 or Plotly is not installed.
    """
    text = _html(StudyDocuments(source) if isinstance(source, LiveRuns) else source)
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write the report to {str(path)!r}: {error.strerror}") from None
    return path


def _html(documents: Documents) -> str:
    files = {name: data.decode() for name, data in template.files().items()}
    study = documents.study()
    values = {
        "report": True,
        "title": study["title"],
        "sentences": study["answer"]["sentences"],
        "icon": "data:image/svg+xml;base64,"
        + base64.b64encode(files["icon.svg"].encode()).decode(),
        "styles": "\n".join(files[name] for name in template.SHEETS),
        "script": bundle(files, "page.js"),
        "packed_plotly": _pack(template.plotly_script()),
        "packed_documents": "",
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "version": importlib.metadata.version("rightbatch"),
    }
    room = LARGEST - len(template.html(**values).encode())
    for content in _coarser(documents, study, room):
        packed = _pack(to_json(content).encode())
        if len(packed) <= room:
            break
    return template.html(**values | {"packed_documents": packed})


def _coarser(documents: Documents, study: dict[str, Any], room: int) -> Iterator[dict[str, Any]]:
    """All documents, repeatedly, each time with half as many points."""
    curves = {metric: documents.curves(metric) for metric in study["metrics"]}
    ids = [run["id"] for run in study["runs"]]
    most = room // (_NUMBERS * _BYTES * max(len(ids) * len(curves), 1))
    of_run, of_metric = min(_RUN_PLACES, max(most, _LEAST)), _METRIC_PLACES
    # Thinned one by one: hundreds of whole runs do not fit into memory either.
    runs = {id: _thin(documents.run(id), of_run) for id in ids}
    while of_metric >= _LEAST:
        yield {
            "study": study | {"live": False},
            "curves": {metric: _thin(one, of_metric) for metric, one in curves.items()},
            "runs": {
                id: _thin(run, of_run) if of_run >= _LEAST else run | {"curves": {}}
                for id, run in runs.items()
            },
        }
        of_run //= 2
        if of_run < _LEAST:
            of_metric //= 2


def _thin(content: Any, places: int) -> Any:
    """With at most so many points, spread evenly, in every group of lists of one length."""
    if isinstance(content, list):
        return [_thin(value, places) for value in content]
    if not isinstance(content, dict):
        return content
    lists = [value for value in content.values() if isinstance(value, list)]
    if len(lists) < 2 or len(lists) != len(content):
        return {key: _thin(value, places) for key, value in content.items()}
    length = len(lists[0])
    count = min(length, places)
    kept = [round(place * (length - 1) / max(count - 1, 1)) for place in range(count)]
    return {key: [_round(values[place]) for place in kept] for key, values in content.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _pack(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
