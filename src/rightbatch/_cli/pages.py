"""`rightbatch ui` and `rightbatch report`: a study as a page or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rightbatch._cli.options import Json, Keywords, TokenFile, token_from, with_options
from rightbatch._cli.output import document, say
from rightbatch._workload.options import AddressOptions

Folder = Annotated[
    str | None, Parameter(help="the folder of a study (its --out), or one with an mlflow.db")
]
StoreUri = Annotated[
    str | None,
    Parameter(
        help="any MLflow store instead: sqlite:///mlflow.db, http://host:5000; beside a folder: "
        "the store with the runs of its study"
    ),
]
Experiment = Annotated[str | None, Parameter(help="only this experiment of the store")]
CompareBy = Annotated[str | None, Parameter(help="a metric and its value to reach: mAP50=0.5")]


@with_options(AddressOptions)
def ui(
    folder: Folder = None,
    /,
    *,
    store: StoreUri = None,
    experiment: Experiment = None,
    target: CompareBy = None,
    port: Annotated[int | None, Parameter(help="default: 8471, or a free one")] = None,
    token_file: TokenFile = None,
    options: Keywords,
) -> None:
    """Show a study on a local page, live while it trains.

    Example: rightbatch ui runs/parts
    Example: rightbatch ui --store sqlite:///mlflow.db
    """
    from rightbatch._study.web.commands import opened, show

    token = token_from(options.get("token"), token_file)
    reader = opened(folder, store, experiment, target)
    show(reader, port=port, say=say, host=options["host"], token=token)


def report(
    folder: Folder = None,
    /,
    *,
    store: StoreUri = None,
    experiment: Experiment = None,
    target: CompareBy = None,
    to: Annotated[Path | None, Parameter(help="default: report.html in the folder")] = None,
    json: Json = False,
) -> None:
    """Write a study into one HTML file that works offline.

    Example: rightbatch report runs/parts --to parts.html
    """
    from rightbatch._study.web.commands import opened
    from rightbatch._study.web.report import write_report

    reader = opened(folder, store, experiment, target)
    beside = Path(folder or ".").expanduser()
    to = to or (beside if beside.is_dir() else beside.parent) / "report.html"
    path = str(write_report(reader, to))
    print(document({"report": path}) if json else path)
