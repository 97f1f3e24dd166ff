"""`rightbatch tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rightbatch._cli.options import (
    Json,
    Keywords,
    RateOptions,
    SpecOptions,
    Workload,
    with_options,
)
from rightbatch._cli.output import print_result
from rightbatch._tune.options import TuneOptions


@with_options(TuneOptions, SpecOptions, RateOptions)
def tune(
    workload: Workload,
    /,
    *,
    options: Keywords,
    plot: Annotated[Path | None, Parameter(help="write the figure into this HTML file")] = None,
    json: Json = False,
) -> None:
    """Find the batch size that reaches the target soonest, and the settings to train with it.

    Example: rightbatch tune train.py:workload --target loss=0.45 --budget 3min
    Example: rightbatch tune -- python train.py --batch-size {batch} --lr {learning_rate}
    """
    from rightbatch._tune.tune import tune

    result = tune(workload, **options)
    if plot is not None:
        result.plot().write_html(plot)
    print_result(result, json)
