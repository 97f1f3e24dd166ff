"""`rightbatch fit`."""

from __future__ import annotations

from rightbatch._cli.options import Json, Keywords, SpecOptions, Workload, with_options
from rightbatch._cli.output import print_result
from rightbatch._fit.options import FitOptions


@with_options(FitOptions, SpecOptions)
def fit(workload: Workload, /, *, options: Keywords, json: Json = False) -> None:
    """Find the largest batch size that fits on this device.

    Example: rightbatch fit train.py:workload --memory 2GiB
    """
    from rightbatch._fit.fit import fit

    print_result(fit(workload, **options), json)
