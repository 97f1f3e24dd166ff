"""The command line: a thin face over the verbs. Imports neither torch nor any framework."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TextIO

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError
from rich.console import Console

from rightbatch import __version__
from rightbatch._errors import RightbatchError, WorkloadError

INTERRUPTED = 130

app = App(
    name="rightbatch",
    help="The right batch size for PyTorch: found, explained and kept.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` answers it
)

# The same in every verb.
Memory = Annotated[str | None, Parameter(help="cap the device for a trial, for example 2GiB")]
Margin = Annotated[float, Parameter(help="share of the limit to leave free")]
MaxBatch = Annotated[int | None, Parameter(help="try nothing larger")]
DeviceName = Annotated[str | None, Parameter(help="cpu, cuda, cuda:N or mps; default: the best")]
BaseBatch = Annotated[int, Parameter(help="the size that the learning rate was chosen for")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="one JSON document on stdout")]
Seed = Annotated[int, Parameter(help="seed of everything random")]
Data = Annotated[Path | None, Parameter(help="the data set's file, for a model given by name")]
ImageSize = Annotated[int | None, Parameter(name="--imgsz", help="image size in pixels, likewise")]


@app.command
def fit(
    workload: Annotated[str, Parameter(help="file.py:function, or a model such as yolo26n.yaml")],
    /,
    *,
    data: Data = None,
    imgsz: ImageSize = None,
    memory: Memory = None,
    margin: Margin = 0.05,
    max_batch: MaxBatch = None,
    inference: Annotated[bool, Parameter(negative="", help="forward only, no gradients")] = False,
    device: DeviceName = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the largest batch size that survives here.

    Example: rightbatch fit train.py:workload --memory 2GiB
    """
    from rightbatch._fit.fit import fit

    result = fit(
        workload,
        memory=memory,
        margin=margin,
        max_batch=max_batch,
        inference=inference,
        device=device,
        seed=seed,
        **_given(data=data and str(data), imgsz=imgsz),
    )
    _print(result, json)


@app.command
def predict(
    workload: Annotated[
        str | None, Parameter(help="file.py:function, or a model such as yolo26n.yaml with --data")
    ] = None,
    /,
    *,
    batch: Annotated[int | None, Parameter(help="examples per step")] = None,
    gpu: Annotated[str | None, Parameter(help='its name, for example "RTX 4090", or all')] = None,
    memory: Annotated[str | None, Parameter(help="a GPU of this size, for example 24GiB")] = None,
    data: Data = None,
    imgsz: ImageSize = None,
    processes: Annotated[int, Parameter(help="GPUs that train together")] = 1,
    inference: Annotated[bool, Parameter(negative="", help="forward only, no gradients")] = False,
    remedies: Annotated[bool, Parameter(help="follow what would save memory, too")] = True,
    replay: Annotated[Path | None, Parameter(help="replay a recorded allocator trace")] = None,
    calibrate: Annotated[
        bool, Parameter(negative="", help="measure context and workspaces of the GPU that is here")
    ] = False,
    device: Annotated[str | None, Parameter(help="cuda, the only one it knows")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Predict peak memory and the largest batch on a GPU that need not be here.

    Example: rightbatch predict train.py:workload --batch 64 --gpu "RTX 4090"
    """
    from rightbatch._errors import UsageError
    from rightbatch._predict.calibrate import calibrate as measure_here
    from rightbatch._predict.predict import predict
    from rightbatch._predict.predict import replay as replay_recording

    if calibrate:
        _print(measure_here(), json)
        return
    if replay is not None:
        _print(replay_recording(replay), json)
        return
    if workload is None or batch is None:
        raise UsageError(
            "predict takes a workload and --batch N, or --replay FILE, or --calibrate; for example "
            'rightbatch predict train.py:workload --batch 64 --gpu "RTX 4090"'
        )
    if device not in (None, "cuda"):
        raise UsageError(f"predict knows CUDA's memory only, not that of {device!r}")
    result = predict(
        workload,
        batch=batch,
        gpu=gpu,
        memory=memory,
        processes=processes,
        inference=inference,
        remedies=remedies,
        seed=seed,
        **_given(data=data and str(data), imgsz=imgsz),
    )
    _print(result, json)


@app.command
def tune(
    workload: Annotated[
        str, Parameter(help="file.py:function, or a model such as yolo26n.yaml with --data")
    ],
    /,
    *,
    target: Annotated[str | None, Parameter(help="for example loss=0.45 or accuracy=0.9")] = None,
    budget: Annotated[str, Parameter(help="how long it may take")] = "3min",
    objective: Annotated[str, Parameter(help="time, cost or energy")] = "time",
    base_batch: BaseBatch = 16,
    epochs: Annotated[
        int | None, Parameter(help="of the training that is planned; default: until the target")
    ] = None,
    verify: Annotated[bool, Parameter(negative="", help="train short branches as well")] = False,
    processes: Annotated[int, Parameter(help="devices that will train together")] = 1,
    bandwidth: Annotated[str, Parameter(help="between them, per second")] = "10GB",
    plot: Annotated[Path | None, Parameter(help="write the picture into this HTML file")] = None,
    data: Data = None,
    imgsz: ImageSize = None,
    memory: Memory = None,
    margin: Margin = 0.05,
    max_batch: MaxBatch = None,
    device: DeviceName = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the batch size that reaches the target soonest, and what it takes to train at it.

    Example: rightbatch tune train.py:workload --target loss=0.45 --budget 3min
    """
    from rightbatch._tune.tune import tune

    result = tune(
        workload,
        target=target,
        budget=budget,
        objective=objective,
        base_batch=base_batch,
        epochs=epochs,
        verify=verify,
        processes=processes,
        bandwidth=bandwidth,
        memory=memory,
        margin=margin,
        max_batch=max_batch,
        device=device,
        seed=seed,
        **_given(data=data and str(data), imgsz=imgsz),
    )
    if plot is not None:
        result.plot().write_html(plot)
    _print(result, json)


@app.command
def train(
    workload: Annotated[
        str, Parameter(help="file.py:function, or a model such as yolo26n.yaml with --data")
    ],
    /,
    *,
    epochs: Annotated[int, Parameter(help="passes over the data")],
    batch: Annotated[str, Parameter(help="auto, or a batch size")] = "auto",
    data: Data = None,
    imgsz: ImageSize = None,
    out: Annotated[Path, Parameter(help="folder for the results")] = Path("runs/rightbatch"),
    micro_batch: Annotated[str, Parameter(help="auto, or examples at once to begin with")] = "auto",
    budget: Annotated[str, Parameter(help="how long auto may take to choose")] = "1min",
    base_batch: BaseBatch = 16,
    adapt: Annotated[
        bool, Parameter(negative="", help="let auto's size grow with the noise scale")
    ] = False,
    resume: Annotated[
        bool, Parameter(negative="", help="go on with the training in --out")
    ] = False,
    checkpoint_seconds: Annotated[float, Parameter(help="time between two saves")] = 30.0,
    memory: Memory = None,
    margin: Margin = 0.05,
    max_batch: MaxBatch = None,
    device: DeviceName = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train at a size that was measured; running out of memory is survived.

    Example: rightbatch train train.py:workload --epochs 5 --out runs/one
    Example: rightbatch train yolo26n.yaml --data parts/data.yaml --imgsz 160 --epochs 5
    """
    from rightbatch._train.train import train

    with _stdout_for_the_document(json) as stdout:
        result = train(
            workload,
            batch=batch,
            epochs=epochs,
            out=out,
            micro_batch=int(micro_batch) if micro_batch.isdigit() else micro_batch,
            budget=budget,
            base_batch=base_batch,
            adapt=adapt,
            resume=resume,
            checkpoint_seconds=checkpoint_seconds,
            memory=memory,
            margin=margin,
            max_batch=max_batch,
            device=device,
            seed=seed,
            **_given(data=data and str(data), imgsz=imgsz),
        )
        _print(result, json, stdout)


Numbers = Annotated[str, Parameter(help="with commas between, for example 8,16,32")]


@app.command
def study(
    workload: Annotated[
        str, Parameter(help="file.py:function, or a model such as yolo26n.yaml with --data")
    ],
    /,
    *,
    batches: Numbers,
    seeds: Annotated[str, Parameter(help="how many, or which: 3, or 0,7,8")] = "3",
    out: Annotated[Path, Parameter(help="folder of the study; the same one goes on")] = Path(
        "runs/study"
    ),
    epochs: Annotated[int | None, Parameter(help="passes over the data, at most")] = None,
    target: Annotated[
        str | None, Parameter(help="where a run ends, for example evaluation_loss=0.3")
    ] = None,
    budget: Annotated[str | None, Parameter(help="time of training of each run, at most")] = None,
    rule: Annotated[
        Literal["scaling", "none"], Parameter(help="how the learning rate goes with the size")
    ] = "scaling",
    learning_rates: Annotated[
        str, Parameter(help="factors on the rule's rate, each a run: 0.5,1,2")
    ] = "1",
    search: Annotated[
        int, Parameter(help="trials of Optuna for each size's learning rate, before the seeds")
    ] = 0,
    base_batch: Annotated[
        int | None, Parameter(help="the size that the learning rate was chosen for; default: 16")
    ] = None,
    noise_scale: Annotated[
        float | None, Parameter(help="for SGD's rule; default: what a run at the base size shows")
    ] = None,
    micro_batch: Annotated[str, Parameter(help="auto, or examples at once")] = "auto",
    prune: Annotated[bool, Parameter(negative="", help="end runs without hope (Optuna)")] = False,
    sharpness: Annotated[
        bool, Parameter(negative="", help="measure the Hessian's largest eigenvalue, too")
    ] = False,
    processes: Annotated[int, Parameter(help="that train each run together (torchrun)")] = 1,
    jobs: Annotated[int, Parameter(help="runs at a time")] = 1,
    on: Annotated[Literal["ray"] | None, Parameter(help="ray: on a Ray cluster")] = None,
    data: Data = None,
    imgsz: ImageSize = None,
    memory: Memory = None,
    margin: Margin = 0.05,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Train at every batch size with every seed, and compare; what is there already is kept.

    Example: rightbatch study train.py:workload --batches 8,32,128 --epochs 20 --out runs/parts
    Example: rightbatch study train.py:workload --batches 8,32,128 --target evaluation_loss=0.3
    """
    from rightbatch._study.study import study

    with _stdout_for_the_document(json) as stdout:
        result = study(
            workload,
            batches=_numbers("--batches", batches, int),
            seeds=_numbers("--seeds", seeds, int) if "," in seeds else _number("--seeds", seeds),
            out=out,
            epochs=epochs,
            target=target,
            budget=budget,
            rule=rule,
            learning_rates=_numbers("--learning-rates", learning_rates, float),
            search=search,
            base_batch=base_batch,
            noise_scale=noise_scale,
            micro_batch=int(micro_batch) if micro_batch.isdigit() else micro_batch,
            prune=prune,
            sharpness=sharpness,
            processes=processes,
            jobs=jobs,
            on=on,
            memory=memory,
            margin=margin,
            device=device,
            **_given(data=data and str(data), imgsz=imgsz),
        )
        _print(result, json, stdout)
    sys.exit(result.exit_code)


Place = Annotated[
    str | None, Parameter(help="the folder of a study (its --out), or one with an mlflow.db")
]
StoreUri = Annotated[
    str | None, Parameter(help="any MLflow store instead: sqlite:///mlflow.db, http://host:5000")
]
Experiment = Annotated[str | None, Parameter(help="of that store only this experiment")]
CompareBy = Annotated[str | None, Parameter(help="a metric and its value to reach: mAP50=0.5")]


@app.command
def ui(
    folder: Place = None,
    /,
    *,
    store: StoreUri = None,
    experiment: Experiment = None,
    target: CompareBy = None,
    port: Annotated[int | None, Parameter(help="default: 8471, or any that is free")] = None,
    host: Annotated[
        str, Parameter(help="where to listen; a foreign one has a token")
    ] = "127.0.0.1",
    token: Annotated[str | None, Parameter(help="that requests bear; made where needed")] = None,
) -> None:
    """Show a study, live while it trains, on a page of this machine.

    Example: rightbatch ui runs/parts
    Example: rightbatch ui --store sqlite:///mlflow.db
    """
    from rightbatch._study.web.commands import opened, show

    reader = opened(folder, store, experiment, target)
    show(reader, port=port, host=host, token=token, say=_say)


@app.command
def report(
    folder: Place = None,
    /,
    *,
    store: StoreUri = None,
    experiment: Experiment = None,
    target: CompareBy = None,
    to: Annotated[Path | None, Parameter(help="default: report.html in the folder")] = None,
    json: Json = False,
) -> None:
    """Write a study into one HTML file that opens without a network.

    Example: rightbatch report runs/parts --to parts.html
    """
    from rightbatch._study.web.commands import opened
    from rightbatch._study.web.report import write_report

    reader = opened(folder, store, experiment, target)
    to = to or Path(folder or ".").expanduser() / "report.html"
    path = str(write_report(reader, to))
    print(_document({"report": path}) if json else path)


Model = Annotated[
    str, Parameter(help="yolo26n.onnx, yolo26n.pt, or file.py:function (list of images -> results)")
]
Latency = Annotated[str, Parameter(help="the target, from a frame's capture to its result")]
ServeDevice = Annotated[
    str | None,
    Parameter(help="cpu, cuda, cuda:N, mps; for .onnx also openvino, tensorrt ...; default: best"),
]
Confidence = Annotated[float | None, Parameter(help="least confidence of a detection")]
Channels = Annotated[
    tuple[float, float, float] | None,
    Parameter(negative="", help="by channel, of images from 0 to 1; for .onnx of no known maker"),
]
Threads = Annotated[int | None, Parameter(help="of the model, on the CPU")]


@app.command
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
    to: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="a file, mqtt://host/topic, - (stdout, default); repeatable"),
    ] = (),
    http: Annotated[int | None, Parameter(help="take images over HTTP at this port")] = None,
    host: Annotated[
        str, Parameter(help="where to listen; a foreign one has a token")
    ] = "127.0.0.1",
    token: Annotated[str | None, Parameter(help="that requests bear; made where needed")] = None,
    page: Annotated[bool, Parameter(help="show a page at localhost")] = True,
    contract: Annotated[
        Literal["every", "freshest", "deadline"] | None,
        Parameter(help="of all sources; default: cameras keep the freshest, files lose nothing"),
    ] = None,
    isolated: Annotated[
        bool, Parameter(negative="", help="read each source in a process of its own")
    ] = False,
    stall_after: Annotated[
        float, Parameter(help="seconds without a frame until a camera is connected to again")
    ] = 3.0,
    stop_within: Annotated[str, Parameter(help="time to finish what was accepted")] = "5s",
    on: Annotated[
        Literal["ray"] | None, Parameter(help="ray: replicas on Ray Serve, behind --http")
    ] = None,
    replicas: Annotated[int | None, Parameter(help="how many, with --on ray")] = None,
    imgsz: ImageSize = None,
    conf: Confidence = None,
    iou: Annotated[float | None, Parameter(help="of two detections of which one is left")] = None,
    mean: Channels = None,
    std: Channels = None,
    threads: Threads = None,
    memory: Memory = None,
    max_batch: MaxBatch = None,
    device: ServeDevice = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Serve a model to cameras, files and requests, in the best batches under a latency target.

    Example: rightbatch serve yolo26n.onnx --source rtsp://line1/cam --latency 100ms
    Example: rightbatch serve model.py:detect --http 8000 --latency 50ms
    """
    import random

    from rightbatch._errors import UsageError

    random.seed(seed)
    _check_unit(latency)
    options = _given(imgsz=imgsz, conf=conf, iou=iou, threads=threads, mean=mean, std=std)
    if on == "ray":
        from rightbatch.integrations.ray._serve import serve_on_ray

        if source or to or memory or contract or isolated or not page or stop_within != "5s":
            raise UsageError(
                "on Ray there are requests only: --source, --to, --memory, --contract, "
                "--isolated, --no-page and --stop-within are for one machine"
            )
        options |= _given(num_replicas=replicas, device=device, max_batch=max_batch)
        serve_on_ray(
            model,
            latency,
            host=host,
            port=8000 if http is None else http,
            token=token,
            show=_say,
            **options,
        )
        return
    if replicas is not None:
        raise UsageError("--replicas goes with --on ray")
    from rightbatch._serve.command import run

    found = run(
        model,
        latency,
        sources=source,
        to=to,
        http=http,
        page=page,
        host=host,
        token=token,
        contract=contract,
        stop_within=stop_within,
        say=_say,
        device=device,
        memory=memory,
        max_batch=max_batch,
        isolated=isolated,
        stall_after=stall_after,
        **options,
    )
    if json and to and "-" not in to:  # else the lines are the JSON
        print(_document(found))


bench = App(
    name="bench",
    help="Measure what is served, with loads that wait for nobody.\n\n"
    "Example: rightbatch bench serve yolo26n.onnx --latency 100ms",
)
app.command(bench)


@bench.command(name="serve")
def bench_serve(
    model: Model,
    /,
    *,
    latency: Latency,
    image: Annotated[
        str, Parameter(help="a picture or a folder of them, to send; default: noise")
    ] = "",
    seconds: Annotated[float, Parameter(help="of each load, ten targets at least")] = 5.0,
    camera_rate: Annotated[float, Parameter(help="frames a second of a camera")] = 10.0,
    imgsz: ImageSize = None,
    conf: Confidence = None,
    iou: Annotated[float | None, Parameter(help="of two detections of which one is left")] = None,
    mean: Channels = None,
    std: Channels = None,
    threads: Threads = None,
    memory: Memory = None,
    max_batch: MaxBatch = None,
    device: ServeDevice = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the most frames a second that are in time, for cameras and for requests.

    Example: rightbatch bench serve yolo26n.onnx --latency 100ms
    """
    from rightbatch._serve.load.bench import bench

    _check_unit(latency)
    result = bench(
        model,
        latency,
        image=image or None,
        seconds=seconds,
        camera_rate=camera_rate,
        memory=memory,
        max_batch=max_batch,
        device=device,
        seed=seed,
        **_given(imgsz=imgsz, conf=conf, iou=iou, threads=threads, mean=mean, std=std),
    )
    _print(result, json)
    if not any(batched.rate for batched, _ in result.rates.values()):
        sys.exit(1)  # nothing is in time


def _check_unit(latency: str) -> None:
    from rightbatch._errors import UsageError

    if latency.strip().replace(".", "", 1).isdigit():  # who writes 100 seldom means seconds
        raise UsageError(f"--latency {latency} has no unit: write {latency}ms, or {latency}s")


def _say(text: str) -> None:
    """To stderr: stdout is for results."""
    print(f"rightbatch: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command; ends the process with the exit code of DESIGN's contract."""
    tokens = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is told to other machines
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app(tokens, exit_on_error=False, error_console=stderr, result_action="return_value")
    except CycloptsError:
        sys.exit(2)  # it has printed what is wrong
    except RightbatchError as error:
        if isinstance(error, WorkloadError) and error.traceback:
            stderr.print(error.traceback, markup=False)
        stderr.print(f"rightbatch: {error}", markup=False)
        if "--json" in tokens and error.exit_code != 2:
            print(_document(error.to_dict()))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interruption:
        stderr.print(f"rightbatch: {str(interruption) or 'interrupted; nothing was left behind'}")
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _numbers(name: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    from rightbatch._errors import UsageError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{name} takes numbers with commas between, for example 8,16,32; got {text!r}"
        ) from None


def _number(name: str, text: str) -> int:
    return int(_numbers(name, text, int)[0])


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _stdout_for_the_document(as_json: bool) -> Iterator[TextIO]:
    """With --json, what a framework prints goes to stderr, and only the document to stdout."""
    stdout = sys.stdout
    if not as_json:
        yield stdout
        return
    with redirect_stdout(sys.stderr):
        yield stdout


def _print(result: Any, as_json: bool, stdout: TextIO | None = None) -> None:
    print(_document(result.to_dict()) if as_json else result, file=stdout)


def _document(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=2)
