"""Part 3: the batch size that `fit` finds against the largest that a plain loop survives."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import nvidia
from benchmarks.gpu.loop import STEPS
from benchmarks.gpu.measure import JOB_SECONDS, TINY_SECONDS, Server
from benchmarks.gpu.rows import Report
from benchmarks.gpu.workloads import CASES, YOLO, yolo_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 2**30
MIB = 2**20
FINE = 0.01
"""How far apart the largest size that survives and the smallest that fails may be, as a share."""
SECONDS_PER_EDGE = 25.0
"""After which the search for one workload's edge ends where it is."""
SECONDS_PER_TRIAL = 8.0
SECONDS_PER_CASE, SECONDS_FOR_OTHERS, SECONDS_FOR_YOLO = 30.0, 20.0, 30.0
TINY_MAX = 4


@dataclass(frozen=True)
class Question:
    """A workload of `workloads.CASES`, on the whole GPU or within `memory` bytes."""

    case: str
    memory: int | None = None


QUESTIONS = (
    Question("decoder 124M bf16"),
    Question("ResNet-50 fp32", 8 * GIB),
    Question("BERT-Base fp32", 8 * GIB),
    Question("ViT-B/16 bf16", 8 * GIB),
)
TINY_QUESTIONS = (Question("3D U-Net fp32", 300 * MIB),)


def run(report: Report) -> None:
    questions = [
        question
        for question in (TINY_QUESTIONS if report.tiny else QUESTIONS)
        if report.has(_in_words(question), *CASES[question.case].requires)
    ]
    packages = {package for question in questions for package in CASES[question.case].requires}
    with Server(TINY_SECONDS if report.tiny else JOB_SECONDS, packages) as server:
        for question in questions:
            what = _in_words(question)
            if report.has_time(what, SECONDS_PER_CASE):
                with report.measuring(what):
                    _fit_and_edge(report, server, question)
    with report.measuring("fit beside another process"):
        _beside_another(report)
    with report.measuring(YOLO):
        _yolo(report)


def _fit_and_edge(report: Report, server: Server, question: Question) -> None:
    import rightbatch as rb

    what, case = _in_words(question), CASES[question.case]
    found = rb.fit(
        case.factory(report.tiny),
        memory=question.memory,
        margin=0.0,
        max_batch=TINY_MAX if report.tiny else None,
        device=report.device,
        progress=False,
    )
    report.row(
        f"{what}: seconds of fit",
        f"{found.seconds:.1f} s, {len(found.probes)} probes",
        "",
        **found.to_dict(),
    )
    if question.memory is not None:
        report.row(
            f"{what}: the limit",
            f"{found.limit_bytes / GIB:.3f} GiB, enforced: {found.limit_enforced}, "
            f"peak {found.peak_bytes / GIB:.3f} GiB",
            f"{question.memory / GIB:.3f} GiB, enforced, peak below",
            limit_bytes=found.limit_bytes,
            peak_bytes=found.peak_bytes,
        )
    trials: dict[int, str] = {}

    def survives(size: int) -> bool:
        answer = server.run(
            "survives",
            case=question.case,
            tiny=report.tiny,
            device=report.device,
            batch=size,
            steps=STEPS,
            limit=found.limit_bytes,
        )
        trials[size] = answer["outcome"]
        return answer["outcome"] == "ok"

    most = TINY_MAX if report.tiny else len(case.factory(report.tiny)().data)  # type: ignore[arg-type]
    until = time.monotonic() + SECONDS_PER_EDGE

    def goes_on() -> bool:
        in_time = time.monotonic() < until and report.left > SECONDS_PER_TRIAL
        return report.tiny or in_time

    edge, is_exact = largest_surviving(survives, found.batch_size, most, goes_on)
    share = f"{found.batch_size / edge:.1%}" if edge else "none survived"
    report.row(
        f"{what}: batch size",
        f"{found.batch_size} ({share} of the edge)",
        f"97 to 100% of {edge}, {'the edge' if is_exact else 'the largest tried that survived'} "
        "of the plain loop",
        batch_size=found.batch_size,
        edge=edge,
        edge_is_exact=is_exact,
        trials=trials,
        reason=found.reason,
    )


def largest_surviving(
    survives: Callable[[int], bool], start: int, most: int, goes_on: Callable[[], bool]
) -> tuple[int, bool]:
    """The largest size up to `most` that survives, to within `FINE`; and whether it is that.

    Searched from `start`: up in growing steps, or down by halves, then between the two ends.
    """
    low, high = 0, most + 1
    if survives(start):
        low, step = start, max(int(3 * FINE * start), 1)
        while low < most and goes_on():
            size = min(low + step, most)
            if not survives(size):
                high = size
                break
            low, step = size, 2 * step
    else:
        high = start
        while high > 1 and goes_on():
            size = high - max(int(3 * FINE * high), 1) if high == start else high // 2
            if survives(size):
                low = size
                break
            high = size
    while high - low > max(FINE * low, 1) and goes_on():
        middle = (low + high) // 2
        low, high = (middle, high) if survives(middle) else (low, middle)
    return low, high - low <= max(FINE * low, 1)


def _beside_another(report: Report) -> None:
    """A limit counts what another process holds, and the size that was found runs beside it."""
    what = "fit beside a process that holds memory"
    if report.device != "cuda":
        report.skip(what, "needs a GPU's own memory")
        return
    if not report.has_time(what, SECONDS_FOR_OTHERS):
        return
    import rightbatch as rb

    total = nvidia.ask().get("total") or 0
    with _held(total // 2):
        free = nvidia.ask().get("free")
        # The limit is what is asked about, so a few small sizes are enough.
        found = rb.fit(
            CASES["3D U-Net fp32"].factory(False), max_batch=2, device="cuda", progress=False
        )
    report.row(
        f"{what}: the limit",
        f"{found.limit_bytes / GIB:.2f} GiB",
        "unknown" if free is None else f"{free / GIB:.2f} GiB free by the driver, less a context",
        held_bytes=total // 2,
        free_bytes=free,
        **found.to_dict(),
    )


@contextmanager
def _held(size: int) -> Iterator[None]:
    """Another process that has allocated `size` bytes of the GPU."""
    hold = f"import torch; x = torch.ones({size}, dtype=torch.uint8, device='cuda'); "
    hold += "torch.cuda.synchronize(); print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "held":
            raise RuntimeError("the other process could not allocate its memory")
        yield
    finally:
        with suppress(OSError):
            process.kill()
        process.wait()


def _yolo(report: Report) -> None:
    """Ultralytics' AutoBatch beside `fit`, on the whole GPU."""
    if report.tiny:
        report.skip(YOLO, "takes longer than a tiny run")
        return
    if not report.has(YOLO, "ultralytics") or not report.has_time(YOLO, SECONDS_FOR_YOLO):
        return
    import rightbatch as rb

    with tempfile.TemporaryDirectory() as folder:
        factory = yolo_factory(Path(folder), report.tiny)
        found = rb.fit(factory, device=report.device, progress=False)
    started = time.perf_counter()
    theirs = autobatch(640)
    report.row(
        f"{YOLO}, 640 pixels: batch size",
        f"{found.batch_size} in {found.seconds:.1f} s",
        f"AutoBatch: {theirs} (of 60% of the memory) in {time.perf_counter() - started:.1f} s",
        autobatch=theirs,
        **found.to_dict(),
    )


def autobatch(side: int) -> int:
    """The batch that Ultralytics would take for `batch=-1`."""
    import torch
    from ultralytics import YOLO as Model
    from ultralytics.utils.autobatch import check_train_batch_size

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = Model("yolo26n.yaml").model.to(device)
    return int(check_train_batch_size(model, imgsz=side, amp=True, batch=-1))


def _in_words(question: Question) -> str:
    if question.memory is None:
        return f"{question.case}, the whole GPU"
    return f"{question.case}, --memory {question.memory / GIB:.3g}GiB"
