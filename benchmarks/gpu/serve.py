"""Part 6: one torch model under three latency targets: the batches it forms, and who is in time."""

from __future__ import annotations

import collections
import random
import time
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from benchmarks.gpu.rows import Report

TARGETS = (0.010, 0.030, 0.100)
SECONDS, TINY_SECONDS = 3.0, 0.4
LOAD = 0.7
"""Of the requests a second that calibration promises."""
SECONDS_PER_TARGET = 6.0


def run(report: Report) -> None:
    with report.measuring("serve"):
        model, item = _model(report)
        for target in (TARGETS[-1],) if report.tiny else TARGETS:
            what = f"target {1000 * target:.0f} ms"
            if report.has_time(what, SECONDS_PER_TARGET):
                with report.measuring(what):
                    _serve(report, model, item, target, what)


def _model(report: Report) -> tuple[nn.Module, Tensor]:
    """ResNet-50 on 224 pixels, without trained weights: they do not change its speed."""
    if report.tiny or not report.has("ResNet-50", "torchvision"):
        model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        item = torch.zeros(3, 64, 64)
    else:
        from torchvision.models import resnet50

        model, item = resnet50(), torch.zeros(3, 224, 224)
    return model.to(report.device).eval(), item


def _serve(report: Report, model: nn.Module, item: Tensor, target: float, what: str) -> None:
    def function(items: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return list(model(torch.stack(items).to(report.device)).cpu())  # .cpu() waits

    seconds = TINY_SECONDS if report.tiny else SECONDS
    with rb.Batcher(function, latency=target, calibrate_on=item) as batcher:
        calibration = batcher.calibration
        assert calibration is not None
        rate = LOAD * calibration.requests_per_second
        futures, lag = _offer(batcher, item, rate, seconds)
        sizes: collections.Counter[int] = collections.Counter()
        latencies, in_time = [], 0
        for future in futures:
            try:
                served = future.result(timeout=10)
            except rb.LateError:
                continue
            sizes[served.batch_size] += 1
            latencies.append(served.latency)
            in_time += served.in_time
    asked = len(futures)
    latencies.sort()
    middle = latencies[len(latencies) // 2] if latencies else float("nan")
    most = calibration.largest_batch
    mean = sum(size * n for size, n in sizes.items()) / max(sum(sizes.values()), 1)
    report.row(
        f"{what}: {rate:.0f} requests/s, {LOAD:.0%} of what calibration promises",
        f"{in_time / max(asked, 1):.2%} in time, median {1000 * middle:.1f} ms, batches of "
        f"{mean:.1f} (an item's mean), up to {max(sizes, default=0)} of {most}",
        "at least 99% in time",
        asked=asked,
        in_time=in_time,
        sizes=dict(sorted(sizes.items())),
        generator_lag_seconds=lag,
        calibration=calibration.to_dict(),
    )


def _offer(
    batcher: rb.Batcher, item: Tensor, rate: float, seconds: float
) -> tuple[list[Future[Any]], float]:
    """Requests at random moments, whether or not earlier ones are done; and how late they came."""
    chance, futures, lag = random.Random(0), [], 0.0
    due = start = time.monotonic()
    while due - start < seconds:
        if (ahead := due - time.monotonic()) > 0:
            time.sleep(ahead)
        else:
            lag = max(lag, -ahead)
        try:
            futures.append(batcher.submit(item, arrived=due))
        except rb.LateError as error:
            refused: Future[Any] = Future()
            refused.set_exception(error)
            futures.append(refused)
        due += chance.expovariate(rate) if rate > 0 else seconds
    return futures, lag
