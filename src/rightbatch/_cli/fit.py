"""`rightbatch fit`."""

from __future__ import annotations

from rightbatch._cli.options import (
    CommandOptions,
    Json,
    Keywords,
    SpecOptions,
    Workload,
    with_options,
)
from rightbatch._cli.output import print_result
from rightbatch._fit.options import FitOptions


@with_options(FitOptions, SpecOptions, CommandOptions)
def fit(workload: Workload, /, *, options: Keywords, json: Json = False) -> None:
    """Find the largest batch size that fits on this device.

    Example: rightbatch fit train.py:workload --memory 2GiB
    Example: rightbatch fit -- python train.py --batch-size {batch}
    """
    from rightbatch._fit.fit import fit

    print_result(fit(workload, **options), json)
