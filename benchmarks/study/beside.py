"""What a training's own clock says of a step: by itself, in a study, and with the page open.

Each is a process of its own, in turns, and a training by itself comes twice in each turn (A/A). The
processor is shared with the study's store, the page's server and the browser: what that costs the
training, on a machine with so few cores, is in it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks._record import say
from benchmarks.elastic.overhead import interval_of_ratio
from benchmarks.study.browser import chromium, opened, wait_for_curves
from benchmarks.study.own import Unwatched
from benchmarks.study.processes import RIGHTBATCH, environment, page_of, started
from benchmarks.study.stored import wait_for_a_run
from benchmarks.study.workload import CONVOLUTION, convolution
from rightbatch._study.store.reader import Reader
from rightbatch._training.distributed import Processes
from rightbatch._training.protocol import LoopPlan
from rightbatch._training.workload_training import WorkloadTraining

BATCH = 64


def beside(rounds: int, epochs: int) -> dict[str, Any]:
    """Seconds of a step as they are counted, without evaluations and looks at the noise."""
    ways: dict[str, Callable[[int], float]] = {
        "alone": _alone,
        "again": _alone,
        "study": lambda epochs: _studied(epochs, with_page=False),
        "page": lambda epochs: _studied(epochs, with_page=True),
    }
    samples: dict[str, list[float]] = {way: [] for way in ways}
    chance = random.Random(0)
    for number in range(rounds):
        for way in chance.sample(list(ways), len(ways)):
            samples[way].append(ways[way](epochs))
        last = ", ".join(f"{way} {1000 * taken[-1]:.2f} ms" for way, taken in samples.items())
        say(f"turn {number + 1}: {last}")
    return {
        "batch_size": BATCH,
        "epochs": epochs,
        "step_seconds": samples,
        "ratios": {
            way: interval_of_ratio(samples[way], samples["alone"])
            for way in ("again", "study", "page")
        },
    }


def _alone(epochs: int) -> float:
    """In a process as that of a study's run is."""
    told = [sys.executable, "-m", "benchmarks.study.beside", str(epochs)]
    done = subprocess.run(told, check=True, capture_output=True, text=True, env=environment())
    return float(json.loads(done.stdout)["step_seconds"])


def _studied(epochs: int, *, with_page: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="rightbatch-") as folder:
        out = Path(folder)
        told = [*RIGHTBATCH, "study", CONVOLUTION, "--out", folder, "--epochs", str(epochs)]
        told += ["--batches", str(BATCH), "--seeds", "1", "--rule", "none"]
        told += ["--micro-batch", str(BATCH)]
        with started(told) as study, ExitStack() as stack:
            if with_page:
                wait_for_a_run(out, study)
                served = stack.enter_context(page_of(out))
                page = opened(stack.enter_context(chromium()))
                page.goto(served.url, wait_until="commit")
                wait_for_curves(page)
            study.wait()
        with Reader(out) as reader:
            (run,) = reader.runs()
    if run.status != "finished":
        raise RuntimeError(f"the study's run is {run.status}: {run.reason}")
    return run.seconds / run.steps


def _train(epochs: int) -> float:
    processes = Processes(torch.device("cpu"))
    plan = LoopPlan(batch_size=BATCH, micro_batch_size=BATCH, epochs=epochs)
    with WorkloadTraining(convolution).loop(plan, processes, [Unwatched()]) as loop:
        at = loop.run()
    return at.seconds / at.steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="train by itself, and say what a step took")
    parser.add_argument("epochs", type=int)
    print(json.dumps({"step_seconds": _train(parser.parse_args().epochs)}))
