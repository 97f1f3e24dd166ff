"""`rightbatch serve`."""

from __future__ import annotations

import random
from typing import Annotated, Literal

from cyclopts import Parameter

from rightbatch._cli.options import (
    Json,
    Keywords,
    Latency,
    Model,
    ModelOptions,
    TokenFile,
    check_latency,
    token_from,
    with_options,
)
from rightbatch._cli.output import document, say
from rightbatch._errors import UsageError
from rightbatch._serve.options import ServeOptions

_STOP_WITHIN = "5s"
_RAY_PORT = 8000
_ONE_MACHINE = ("to", "memory", "contract", "isolated", "allow_source")


@with_options(ServeOptions, ModelOptions)
def serve(
    model: Model,
    /,
    *,
    latency: Latency,
    source: Annotated[
        tuple[str, ...],
        Parameter(
            negative="", help="rtsp://..., a video file, a folder of pictures, webcam:0; repeatable"
        ),
    ] = (),
    options: Keywords,
    page: Annotated[bool, Parameter(help="show a page on localhost")] = True,
    token_file: TokenFile = None,
    stop_within: Annotated[str, Parameter(help="time to finish accepted requests")] = _STOP_WITHIN,
    on: Annotated[
        Literal["ray"] | None, Parameter(help="ray: replicas on Ray Serve, behind --http")
    ] = None,
    replicas: Annotated[int | None, Parameter(help="number of replicas, with --on ray")] = None,
    seed: Annotated[int, Parameter(help="seed of everything random")] = 0,
    json: Json = False,
) -> None:
    """Serve a model to cameras, files and requests, in the best batches under a latency target.

    Example: rightbatch serve yolo26n.onnx --source rtsp://line1/cam --latency 100ms
    Example: rightbatch serve model.py:detect --http 8000 --latency 50ms
    """
    random.seed(seed)
    check_latency(latency)
    options["token"] = token_from(options.get("token"), token_file)
    if on == "ray":
        if source or not page or any(map(options.get, _ONE_MACHINE)):
            raise UsageError(
                "--on ray serves requests only: leave out --source, --to, --memory, --contract, "
                "--isolated, --allow-source and --no-page"
            )
        _on_ray(model, latency, replicas, stop_within, options)
        return
    if replicas is not None:
        raise UsageError("--replicas requires --on ray")
    from rightbatch._serve.command import run

    to = options.pop("to")
    absent: Keywords = dict.fromkeys(("http", "token", "contract"))
    found = run(
        model,
        latency,
        sources=source,
        to=to,
        page=page,
        stop_within=stop_within,
        say=say,
        **absent | options,
    )
    if json and to and "-" not in to:  # with --to - the results are the JSON on stdout
        print(document(found))


def _on_ray(
    model: str, latency: str, replicas: int | None, stop_within: str, options: Keywords
) -> None:
    from rightbatch._units import parse_seconds
    from rightbatch.integrations.ray._serve import serve_on_ray

    port = options.pop("http", _RAY_PORT)
    for name in ("stall_after", *_ONE_MACHINE):
        options.pop(name, None)
    serve_on_ray(
        model,
        latency,
        port=port,
        num_replicas=replicas,
        show=say,
        stop_within=parse_seconds(stop_within),
        **options,
    )
