"""`rightbatch train`."""

from __future__ import annotations

from rightbatch._cli.options import Json, Keywords, SpecOptions, Workload, with_options
from rightbatch._cli.output import print_result, stdout_for_the_document
from rightbatch._train.options import TrainOptions


@with_options(TrainOptions, SpecOptions)
def train(workload: Workload, /, *, options: Keywords, json: Json = False) -> None:
    """Train at a batch size that is given or measured, and survive out-of-memory errors.

    Example: rightbatch train train.py:workload --epochs 5 --out runs/one
    Example: rightbatch train yolo26n.yaml --data parts/data.yaml --imgsz 160 --epochs 5
    """
    from rightbatch._train.train import train

    with stdout_for_the_document(json) as stdout:
        print_result(train(workload, **options), json, stdout)
