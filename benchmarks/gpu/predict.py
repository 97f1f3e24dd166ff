"""Part 2: predicted memory against measured memory, and recordings of the real allocator."""

from __future__ import annotations

import itertools
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import workloads
from benchmarks.gpu.internals import CONTEXT, CUBLAS, CUBLAS_FROM_HOPPER, gpu_like, replayed
from benchmarks.gpu.loop import STEPS
from benchmarks.gpu.measure import JOB_SECONDS, TINY_SECONDS, Server
from benchmarks.gpu.parts import PROBES
from benchmarks.gpu.rows import Report
from benchmarks.gpu.workloads import CASES, YOLO, YOLO_BATCHES, Case

MIB = 2**20
SECONDS_PER_CASE, SECONDS_FOR_CALIBRATION, SECONDS_FOR_YOLO = 6.0, 12.0, 25.0
PREDICTED_IF_TINY = ("3D U-Net fp32",)
"""A prediction takes seconds whatever its size; all workloads are measured."""


def run(report: Report) -> None:
    gpu = _gpu() if report.device == "cuda" else None
    can_predict = report.has("predictions", *PROBES)
    threads = 2 if report.tiny else max((os.cpu_count() or 2) // 3, 2)
    seconds = TINY_SECONDS if report.tiny else JOB_SECONDS
    cases = _installed(report)
    packages = {package for case in cases for package in case.requires}
    # Predictions use the processor and measurements the GPU, so both go on at once.
    with ThreadPoolExecutor(threads) as pool, Server(seconds, packages) as server:
        predicted: dict[tuple[str, int], Future[Any]] = {}
        jobs = list(itertools.product(cases, (0, 1)))
        jobs.sort(key=lambda job: job[1])  # one batch of every workload first
        if report.tiny:
            jobs = [job for job in jobs if not job[1] or job[0].name in PREDICTED_IF_TINY]
        for case, which in jobs:
            if can_predict and not (report.tiny and (which or case.name not in PREDICTED_IF_TINY)):
                size = case.sizes(report.tiny)[which]
                predicted[case.name, which] = pool.submit(_predicted, case, size, gpu, report.tiny)
        for case, which in jobs:
            size = case.sizes(report.tiny)[which]
            what = f"{case.name}, batch {size}"
            if not report.has_time(what, SECONDS_PER_CASE):
                continue
            with report.measuring(what):
                path = report.folder / f"{_file_name(case.name)}-{size}.json.gz"
                record = str(path) if report.device == "cuda" else None
                found = server.run(
                    "peak",
                    case=case.name,
                    tiny=report.tiny,
                    device=report.device,
                    batch=size,
                    steps=2 if report.tiny else STEPS,
                    record=record,
                    record_late=which == 1,
                )
                future = predicted.get((case.name, which))
                _compare(report, what, future.result() if future else None, found)
                if record is not None:
                    _replay(report, what, path)
        for future in predicted.values():
            future.cancel()
    with report.measuring("calibration"):
        _calibrate(report)
    with report.measuring(YOLO):
        _yolo(report, gpu)


def _installed(report: Report) -> list[Case]:
    return [case for case in CASES.values() if report.has(case.name, *case.requires)]


def _gpu() -> str:
    major, minor = torch.cuda.get_device_capability(0)
    return gpu_like(major + minor / 10, torch.cuda.get_device_properties(0).total_memory)


def _predicted(case: Case, size: int, gpu: str | None, tiny: bool) -> Any:
    return _predict(case.factory(tiny), size, gpu)


def _predict(factory: Any, size: int, gpu: str | None) -> Any:
    import rightbatch as rb

    options: dict[str, Any] = {"remedies": False, "progress": False}
    return rb.predict(factory, batch=size, gpu=gpu, **options)


def _compare(report: Report, what: str, predicted: Any, found: dict[str, Any]) -> None:
    """A row a figure. On the CPU they are of another device, and only show that all was run."""
    if found["outcome"] != "ok":
        report.row(what, found["outcome"], "runs", **found)
        return
    if predicted is None:
        peaks = f"allocated {_mib(found['allocated'])}, reserved {_mib(found['reserved'])}"
        report.row(f"{what}: measured only", peaks, "", measured=found)
        return
    figures = {
        "allocated": (predicted.allocated_peak_bytes, "within 1%"),
        "reserved": (predicted.reserved_peak_bytes, "within 1%"),
    }
    for name, (bytes_, goal) in figures.items():
        measured = found[name]
        error = f", {bytes_ / measured - 1:+.2%}" if measured else ""
        report.row(
            f"{what}: {name}",
            f"predicted {_mib(bytes_)}, measured {_mib(measured)}{error}",
            goal,
            predicted_bytes=bytes_,
            measured_bytes=measured,
        )
    band = predicted.process_bytes
    if found["process"] is not None:
        report.row(
            f"{what}: process, by the driver",
            _mib(found["process"]),
            f"{_mib(band['low'])} to {_mib(band['high'])}",
            predicted_bytes=dict(band),
            measured_bytes=found["process"],
        )
    report.row(
        f"{what}: seconds of the prediction",
        f"{predicted.seconds:.1f} s",
        "",
        seconds=predicted.seconds,
        how=predicted.how,
        notes=list(predicted.notes),
        measured=found,
        breakdown=dict(predicted.breakdown),
    )


def _replay(report: Report, what: str, path: Path) -> None:
    found = replayed(path)
    report.row(
        f"{what}: the recorded allocator, replayed",
        f"{found['address_matches']:,} of {found['allocations']:,} addresses, "
        f"{found['segment_matches']} of {found['segments']} segments",
        "all",
        file=path.name,
        **found,
    )


def _calibrate(report: Report) -> None:
    """What a process takes beside its tensors; kept in the part's own cache, not the user's."""
    if report.device != "cuda":
        report.skip("calibration", "measures a CUDA GPU")
        return
    if not report.has_time("calibration", SECONDS_FOR_CALIBRATION):
        return
    import rightbatch as rb

    found = rb.calibrate()
    workspace = CUBLAS_FROM_HOPPER if found.capability >= 9 else CUBLAS
    report.row(
        "context, bare and with kernels loaded",
        f"{_mib(found.context_low_bytes)} to {_mib(found.context_high_bytes)}",
        f"{_mib(CONTEXT[0])} to {_mib(CONTEXT[1])} (the table)",
        **found.to_dict(),
    )
    report.row(
        "cuBLAS workspace of a thread",
        f"{found.cublas_bytes:,} bytes",
        f"{workspace:,} bytes (the table)",
    )


def _yolo(report: Report, gpu: str | None) -> None:
    """Ultralytics' own step, measured by a probe: `fit` with no more than this batch."""
    if report.tiny:
        report.skip(YOLO, "takes longer than a tiny run")
        return
    if not report.has(YOLO, "ultralytics", *PROBES):
        return
    import rightbatch as rb

    with tempfile.TemporaryDirectory() as folder:
        factory = workloads.yolo_factory(Path(folder), report.tiny)
        for size in YOLO_BATCHES:
            what = f"{YOLO}, batch {size}"
            if not report.has_time(what, SECONDS_FOR_YOLO):
                return
            with report.measuring(what):
                predicted = _predict(factory, size, gpu)
                ran = rb.fit(
                    factory, max_batch=size, margin=0.0, device=report.device, progress=False
                )
                probe = next(p for p in ran.probes if p.batch_size == ran.batch_size and p.is_ok)
                detail = dict(probe.detail)
                found = {
                    "outcome": "ok",
                    "allocated": detail.get("allocated_bytes", probe.live_bytes or 0),
                    "reserved": detail.get("reserved_bytes", probe.peak_bytes or 0),
                    "process": None,  # the probe's base has the context in it
                    "probe": probe.to_dict(),
                }
                _compare(report, what, predicted, found)


def _file_name(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _mib(value: float) -> str:
    return f"{value / MIB:,.0f} MiB"
