"""`rightbatch study`."""

from __future__ import annotations

import sys

from rightbatch._cli.options import (
    Json,
    Keywords,
    RateOptions,
    SpecOptions,
    Workload,
    with_options,
)
from rightbatch._cli.output import print_result, stdout_for_the_document
from rightbatch._study.options import StudyOptions


@with_options(StudyOptions, SpecOptions, RateOptions)
def study(workload: Workload, /, *, options: Keywords, json: Json = False) -> None:
    """Train at every batch size with every seed, and compare the sizes; finished runs are kept.

    Example: rightbatch study train.py:workload --batches 8,32,128 --epochs 20 --out runs/parts
    Example: rightbatch study train.py:workload --batches 8,32,128 --target evaluation_loss=0.3
    Example: rightbatch study --batches 8,32 -- python train.py --batch {batch} --seed {seed}
    """
    from rightbatch._study.study import study

    with stdout_for_the_document(json) as stdout:
        result = study(workload, **options)
        print_result(result, json, stdout)
    sys.exit(result.exit_code)
