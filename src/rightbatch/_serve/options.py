"""The options of `serve`, its command and `bench serve`. Imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rightbatch._serve.engine.records import Contract
from rightbatch._serve.load.export import Target
from rightbatch._workload.options import AddressOptions, Help, MaxBatch, Memory, Options, Seed


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Where the model runs, and in how large batches."""

    memory: Memory = None
    max_batch: MaxBatch = None
    device: Annotated[
        str | None,
        Help("cpu, cuda, cuda:N, mps; for .onnx also openvino, tensorrt ...; default: best"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ServeOptions(EngineOptions, AddressOptions):
    """What `rightbatch.serve` takes beside the model, its sources and the latency target."""

    to: Annotated[
        Any,
        Help(
            "a file, mqtt://host/topic, - (stdout, default); repeatable",
            cli_default=(),
            cli_type=tuple[str, ...],
        ),
    ] = None
    allow_source: Annotated[
        Sequence[str],
        Help(
            "what the page may open besides --source: a folder, a scheme (rtsp:) or a URL with "
            "what is below it; repeatable",
            cli_type=tuple[str, ...],
        ),
    ] = ()
    http: Annotated[int | None, Help("take images over HTTP at this port")] = None
    contract: Annotated[
        Contract | None,
        Help("of all sources; default: cameras keep the freshest, files lose nothing"),
    ] = None
    isolated: Annotated[bool, Help("read each source in a process of its own")] = False
    stall_after: Annotated[float, Help("seconds without a frame until a camera is reconnected")] = (
        3.0
    )


@dataclass(frozen=True, kw_only=True)
class BenchOptions(EngineOptions):
    """What `rightbatch bench serve` takes beside the model and the latency target."""

    image: Annotated[
        Any, Help("a picture or a folder of them, to send; default: noise", cli_type=str | None)
    ] = None
    seconds: Annotated[float, Help("of each load; at least ten times the latency target")] = 5.0
    camera_rate: Annotated[float, Help("frames a second of a camera")] = 10.0
    export: Annotated[
        Target | None,
        Help("write the batch size and the delay that were found as settings of this server"),
    ] = None
    out: Annotated[str | None, Help("folder in which --export writes")] = None
    seed: Seed = 0
