"""A study as one HTML file: the page with all that it shows, which asks for nothing else.

Plotly's script and the documents are in it compressed, so that it can be mailed; a browser of 2023
or newer unpacks them. Where there are too many runs for that, their own curves are made coarser.
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
from rightbatch._study.web import template
from rightbatch._study.web.bundle import as_one
from rightbatch._study.web.documents import Documents, OfSource, Source, to_json

LARGEST = 6_000_000
"""Bytes of the file."""

_RUN_PLACES, _METRIC_PLACES = 1000, 300
"""Of a run's own curve, and of a metric's by batch size, where there is room."""
_LEAST = 10
"""Places of a curve; with fewer it is left out."""
_NUMBERS, _BYTES = 5, 2
"""Of a place on a run's curve, and of a number, compressed: a guess that is on the low side."""
_DIGITS = 5
"""That are kept of a curve's values: more than a picture shows."""


def write_report(source: Source | Documents, path: str | os.PathLike[str]) -> Path:
    """Write the report; a file that is there already is replaced once the new one is whole.

    Args:
        source: a store of runs, or the documents of one.
        path: the file, `*.html`.

    Returns:
        The file's path.

    Raises:
        UsageError: if nothing can be written there.
        MissingExtraError: if Jinja2 or Plotly is not installed.
    """
    text = _html(OfSource(source) if isinstance(source, Source) else source)
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
        "script": as_one(files, "page.js"),
        "packed_plotly": _packed(template.plotly_script()),
        "packed_documents": "",
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "version": importlib.metadata.version("rightbatch"),
    }
    room = LARGEST - len(template.html(**values).encode())
    for content in _coarser(documents, study, room):
        packed = _packed(to_json(content).encode())
        if len(packed) <= room:
            break
    return template.html(**values | {"packed_documents": packed})


def _coarser(documents: Documents, study: dict[str, Any], room: int) -> Iterator[dict[str, Any]]:
    """All documents, again and again, each time with half as many places."""
    curves = {metric: documents.curves(metric) for metric in study["metrics"]}
    ids = [run["id"] for run in study["runs"]]
    most = room // (_NUMBERS * _BYTES * max(len(ids) * len(curves), 1))
    of_run, of_metric = min(_RUN_PLACES, max(most, _LEAST)), _METRIC_PLACES
    # Thinned as they come: of hundreds of runs, not all have room here either.
    runs = {id: _thinned(documents.run(id), of_run) for id in ids}
    while of_metric >= _LEAST:
        yield {
            "study": study | {"live": False},
            "curves": {metric: _thinned(one, of_metric) for metric, one in curves.items()},
            "runs": {
                id: _thinned(run, of_run) if of_run >= _LEAST else run | {"curves": {}}
                for id, run in runs.items()
            },
        }
        of_run //= 2
        if of_run < _LEAST:
            of_metric //= 2


def _thinned(content: Any, places: int) -> Any:
    """With at most so many places, spread evenly, in every group of lists of one length."""
    if isinstance(content, list):
        return [_thinned(value, places) for value in content]
    if not isinstance(content, dict):
        return content
    lists = [value for value in content.values() if isinstance(value, list)]
    if len(lists) < 2 or len(lists) != len(content):
        return {key: _thinned(value, places) for key, value in content.items()}
    length = len(lists[0])
    count = min(length, places)
    kept = [round(place * (length - 1) / max(count - 1, 1)) for place in range(count)]
    return {key: [_rounded(values[place]) for place in kept] for key, values in content.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
