"""`rightbatch bench`."""

from __future__ import annotations

import sys

from cyclopts import App

from rightbatch._cli.options import (
    Json,
    Keywords,
    Latency,
    Model,
    ModelOptions,
    check_latency,
    with_options,
)
from rightbatch._cli.output import print_result, say
from rightbatch._serve.options import BenchOptions

bench = App(
    name="bench",
    help="Measure how many frames and requests a model serves in time, under open-loop loads.\n\n"
    "Example: rightbatch bench serve yolo26n.onnx --latency 100ms",
)


@with_options(BenchOptions, ModelOptions)
def bench_serve(
    model: Model, /, *, latency: Latency, options: Keywords, json: Json = False
) -> None:
    """Find the highest rate of frames and of requests within the latency target.

    Example: rightbatch bench serve yolo26n.onnx --latency 100ms
    Example: rightbatch bench serve yolo26n.onnx --latency 100ms --export triton --out yolo26n
    """
    from rightbatch._serve.load.bench import bench

    check_latency(latency)
    result = bench(model, latency, **options)
    print_result(result, json)
    if not result.meets_target:
        sys.exit(1)
    if options.get("export"):
        say(f"settings for {options['export']} are in {options['out']}")


bench.command(bench_serve, name="serve")
