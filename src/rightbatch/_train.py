"""`train`: run a training at a batch size, found and chosen first if that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any

from rightbatch._choose import choose
from rightbatch._errors import UsageError
from rightbatch._factory import resolve
from rightbatch._fit import FitResult, fit
from rightbatch._units import format_seconds


@dataclass(frozen=True)
class TrainResult:
    """A finished training. `steps` are updates, `examples` those that all of them saw.

    `largest` is what `fit` found where the size was chosen, `reason` says why this one.
    """

    batch_size: int
    micro_batch_size: int
    steps: int
    examples: int
    seconds: float
    out_of_memory_events: int
    metrics: Mapping[str, float]
    out: str
    reason: str
    largest: FitResult | None

    def __str__(self) -> str:
        return (
            f"batch size {self.batch_size}: {self.steps} updates in "
            f"{format_seconds(self.seconds)}; results in {self.out}\n{self.reason}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `rightbatch train --json`."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return document | {"largest": self.largest.to_dict() if self.largest else None}


def train(
    workload: object,
    *,
    batch: int | str = "auto",
    epochs: int,
    out: str | Path,
    memory: int | str | None = None,
    margin: float = 0.05,
    max_batch: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrainResult:
    """Train a model of an integration through that framework's own trainer.

    `batch` is the batch size, or `"auto"`: the smaller of the largest that fits and the largest
    that leaves enough updates (`rightbatch._choose`). Results are written into the folder `out`.
    `settings` go to the framework's training as they are, `options` to its spec (`data=`,
    `imgsz=`).

    Raises:
        UsageError: for a workload without a trainer of its own, or a batch that cannot be meant.
        NothingFitsError: if `batch="auto"` finds that nothing fits.
    """
    factory = resolve(workload, **options)
    run = getattr(factory, "train", None)
    if run is None:
        raise UsageError(
            "train takes a model of an integration (yolo26n.yaml with --data); a Workload is "
            "trained by your own loop at the size that `fit` finds"
        )
    if isinstance(batch, str) and batch.isdigit():
        batch = int(batch)
    if not (batch == "auto" or (isinstance(batch, int) and batch >= 1)):
        raise UsageError(f"batch is 'auto' or a number of at least 1, not {batch!r}")
    if epochs < 1:
        raise UsageError(f"epochs is at least 1, not {epochs}")

    largest: FitResult | None = None
    if isinstance(batch, int):
        size, reason = batch, f"{batch} was asked for"
    else:
        largest = fit(
            factory,
            memory=memory,
            margin=margin,
            max_batch=max_batch,
            device=device,
            seed=seed,
            progress=progress,
        )
        choice = choose(
            largest.batch_size,
            largest.smallest_batch_size,
            largest.examples or largest.batch_size,
            epochs,
        )
        size, reason = choice.batch_size, choice.reason
    done = run(
        batch=size, epochs=epochs, out=Path(out), device=device, seed=seed, **(settings or {})
    )
    return TrainResult(
        batch_size=size,
        micro_batch_size=size,
        steps=ceil(done.examples / size) * done.epochs,
        examples=done.examples * done.epochs,
        seconds=done.seconds,
        out_of_memory_events=done.out_of_memory_events,
        metrics=done.metrics,
        out=str(done.out),
        reason=reason,
        largest=largest,
    )
