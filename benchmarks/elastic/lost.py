"""What a failure that is survived costs, in steps."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from benchmarks._record import say
from benchmarks.elastic.tasks import SILENT
from benchmarks.workloads import factory
from rightbatch.testing import inject_out_of_memory


def lost() -> dict[str, Any]:
    """Seconds of a step with one failure, over those of a step without, by place."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        subject = factory("resnet18", Path(folder))
        torch.manual_seed(0)
        w = subject.load()()
        batch = w.collate([w.data[i] for i in range(32)])
        step = rb.Elastic(w.model, w.optimizer, w.loss, micro_batch_size=8, on_event=SILENT)
        for _ in range(3):
            step(batch)
        plain = [step(batch).seconds for _ in range(8)]
        usual = statistics.median(plain)
        for place in ("forward", "backward", "synchronization", "hook", "optimizer"):
            disturbed = []
            for _ in range(5):
                when = 3 if place in ("forward", "backward") else 0  # the last part
                with inject_out_of_memory(place, when):
                    disturbed.append(step(batch).seconds)
                for _ in range(21):  # until an emptied cache is worth another try
                    step._micro.on_success(is_single_part=True)  # type: ignore[union-attr]
            results[place] = {
                "steps_lost": statistics.median(disturbed) / usual - 1,
                "seconds": disturbed,
            }
            say(f"lost {place}: {results[place]['steps_lost']:.2f} steps")
    return {"step_seconds": plain, "places": results}
