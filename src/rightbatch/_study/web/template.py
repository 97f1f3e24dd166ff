"""The page's HTML and files, and Plotly's script, which is in its package."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

from rightbatch._errors import MissingExtraError
from rightbatch._web.files import read_files

_HERE = Path(__file__).parent
SHEETS = ("base.css", "page.css", "answer.css", "charts.css", "runs.css", "narrow.css")
"""In the order in which they override each other."""


def files() -> dict[str, bytes]:
    """Return the page's static files, including those shared by all pages, by name."""
    return read_files(_HERE / "static")


def plotly_name() -> str:
    """The file name of Plotly's script, which has the version in it."""
    _plotly_file()
    return f"plotly-{importlib.metadata.version('plotly')}.min.js"


def plotly_script() -> bytes:
    """Plotly's script for browsers, 4.8 MB.

    Raises:
        MissingExtraError: if Plotly is not installed.
    """
    return _plotly_file().read_bytes()


def plotly_marks() -> list[str]:
    """Ids of Plotly's own style sheets, all of them for maps.

    An element with such an id keeps Plotly from adding an inline sheet, which the page forbids.
    """
    return re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly_script().decode())


def _plotly_file() -> Path:
    # Importing it would take a second.
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("Plotly", "study")
    return Path(found.submodule_search_locations[0], "package_data", "plotly.min.js")


def html(**values: Any) -> str:
    """Render the page; `report` is whether it is a file of its own.

    Raises:
        MissingExtraError: if Jinja2 is not installed.
    """
    defaults = {
        "report": False,
        "title": "rightbatch",
        "sheets": SHEETS,
        "sentences": (),
        "marks": (),
    }
    return str(_template().render(defaults | values))


@functools.cache
def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("Jinja2", "study") from None

    loader = jinja2.FileSystemLoader(_HERE / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("index.html")
