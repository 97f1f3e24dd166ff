"""`rightbatch check`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from rightbatch._check.options import CheckOptions
from rightbatch._cli.options import Json, Keywords, SpecOptions, Workload, with_options
from rightbatch._cli.output import print_result


@with_options(CheckOptions, SpecOptions)
def check(
    workload: Workload,
    /,
    *,
    options: Keywords,
    markdown: Annotated[
        bool, Parameter(negative="", help="print a comment for a pull request")
    ] = False,
    json: Json = False,
) -> None:
    """Check that a training step still fits on a GPU that isn't here, against a stored budget.

    Example: rightbatch check train.py:workload --batch 64 --gpu "RTX 4090" --write memory.json
    Example: rightbatch check train.py:workload --against memory.json
    """
    from rightbatch._check.check import check

    result = check(workload, **options)
    if markdown and not json:
        print(result.to_markdown())
    else:
        print_result(result, json)
    sys.exit(0 if result.within_budget else 1)
