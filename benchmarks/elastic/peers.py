"""The same scenario in Accelerate and in Ultralytics."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from benchmarks._record import say
from benchmarks.elastic.tasks import OPTIMIZERS, SILENT, made

SCENARIO_STEPS, FAILS_AT = 40, 25


def peers() -> dict[str, Any]:
    """Memory runs out once, at step 25 of 40, at any size above 8 examples at once."""
    return {
        "elastic": _elastic_scenario(),
        "accelerate": _accelerate_scenario(),
        "ultralytics": _ultralytics_scenario(),
    }


@contextmanager
def _fails_once(large: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the examples at once; fails at its call for step `FAILS_AT`."""
    seen = {"calls": 0, "failed": 0}

    def run(examples: int) -> None:
        seen["calls"] += 1
        if examples > large and seen["calls"] > FAILS_AT:
            seen["failed"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    yield run


def _elastic_scenario() -> dict[str, Any]:
    model, loss, batches = made("mlp", torch.float32)
    attempts = 0
    with _fails_once(8) as fault:

        def failing(model: nn.Module, batch: Any) -> Tensor:
            fault(len(batch[1]))
            return loss(model, batch)

        step = rb.Elastic(
            model, OPTIMIZERS["SGD"](model.parameters()), failing, micro_batch_size=32,
            check=False, on_event=SILENT,
        )  # fmt: skip
        for _ in range(SCENARIO_STEPS):
            attempts += step(batches[0]).attempts
    return {
        "ended": True,
        "restarts": 0,
        "steps_run": attempts,
        "steps_lost": attempts - SCENARIO_STEPS,
        "batch_size": 32,
        "at_once": step.micro_batch_size,
    }


def _accelerate_scenario() -> dict[str, Any]:
    from accelerate.utils import find_executable_batch_size

    seen = {"steps": 0, "starts": 0, "size": 0}
    with _fails_once(8) as fault:

        @find_executable_batch_size(starting_batch_size=32)  # type: ignore[untyped-decorator]
        def train(batch_size: int) -> None:
            seen["starts"] += 1
            seen["size"] = batch_size
            model, loss, batches = made("mlp", torch.float32)
            optimizer = OPTIMIZERS["SGD"](model.parameters())
            for _ in range(SCENARIO_STEPS):
                seen["steps"] += 1
                fault(batch_size)
                optimizer.zero_grad()
                loss(model, tuple(t[:batch_size] for t in batches[0])).backward()
                optimizer.step()

        train()
    return {
        "ended": True,
        "restarts": seen["starts"] - 1,
        "steps_run": seen["steps"],
        "steps_lost": seen["steps"] - SCENARIO_STEPS,
        "batch_size": seen["size"],
        "at_once": seen["size"],
    }


def _ultralytics_scenario() -> dict[str, Any]:
    """Its own retry, once in the first epoch and once in the second one."""
    results = {}
    for name, fails_at in (("first epoch", 3), ("second epoch", 9)):
        results[name] = _ultralytics_run(fails_at)
        say(f"ultralytics {name}: {results[name]}")
    return results


def _ultralytics_run(fails_at: int) -> dict[str, Any]:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    from rightbatch.examples.parts import render_parts

    seen = {"calls": 0, "failed": 0}
    original = DetectionModel.loss

    def failing(self: Any, batch: Any, preds: Any = None) -> Any:
        if self.training:
            seen["calls"] += 1
            if seen["calls"] == fails_at:
                seen["failed"] += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, batch, preds)

    DetectionModel.loss = failing
    with tempfile.TemporaryDirectory() as folder:
        data = render_parts(Path(folder) / "parts", images=48, validation=8, size=64)
        model = YOLO("yolo26n.yaml")
        try:
            model.train(
                data=str(data), epochs=2, batch=8, imgsz=64, device="cpu", project=folder,
                name="run", workers=0, plots=False, verbose=False,
            )  # fmt: skip
            ended, size = True, int(model.trainer.batch_size)
        except torch.OutOfMemoryError:
            ended, size = False, 8
        finally:
            DetectionModel.loss = original
    return {"ended": ended, "batch_size": size, "steps_run": seen["calls"], "steps_asked": 12}
