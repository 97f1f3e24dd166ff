"""`rightbatch predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rightbatch._cli.options import Json, Keywords, SpecOptions, Workload, with_options
from rightbatch._cli.output import print_result
from rightbatch._errors import UsageError
from rightbatch._predict.options import PredictOptions


@with_options(PredictOptions, SpecOptions)
def predict(
    workload: Workload | None = None,
    /,
    *,
    options: Keywords,
    replay: Annotated[Path | None, Parameter(help="replay a recorded allocator trace")] = None,
    calibrate: Annotated[
        bool, Parameter(negative="", help="measure context and workspaces of this machine's GPU")
    ] = False,
    device: Annotated[str | None, Parameter(help="cuda, the only one that is supported")] = None,
    json: Json = False,
) -> None:
    """Predict peak memory and the largest batch on a GPU that you don't have.

    Example: rightbatch predict train.py:workload --batch 64 --gpu "RTX 4090"
    """
    if calibrate:
        from rightbatch._predict.calibrate import calibrate as measure_here

        print_result(measure_here(), json)
        return
    if replay is not None:
        from rightbatch._predict.predict import replay as replay_recording

        print_result(replay_recording(replay), json)
        return
    if workload is None or "batch" not in options:
        raise UsageError(
            "predict takes a workload and --batch N, or --replay FILE, or --calibrate; for example "
            'rightbatch predict train.py:workload --batch 64 --gpu "RTX 4090"'
        )
    if device not in (None, "cuda"):
        raise UsageError(f"predict supports --device cuda only; got {device!r}")
    from rightbatch._predict.predict import predict

    print_result(predict(workload, **options), json)
