"""The options of `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rightbatch._training.updates import DEFAULT_BATCH
from rightbatch._units import parse_seconds
from rightbatch._workload.options import (
    BaseBatch,
    Help,
    ProbeOptions,
    batch_or_auto,
    check_at_least_one,
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ProbeOptions):
    """What `rightbatch.train` takes in addition to the workload."""

    epochs: Annotated[int, Help("passes over the data")]
    batch: Annotated[int | str, Help("auto, or a batch size")] = "auto"
    out: Annotated[str | Path, Help("folder for the results", cli_default="runs/rightbatch")]
    micro_batch: Annotated[int | str, Help("auto, or examples per forward pass at the start")] = (
        "auto"
    )
    budget: Annotated[float | str, Help("time for auto to choose the size")] = "1min"
    base_batch: BaseBatch = DEFAULT_BATCH
    adapt: Annotated[bool, Help("let the size of auto grow with the noise scale")] = False
    resume: Annotated[bool, Help("continue the training in --out")] = False
    checkpoint_seconds: Annotated[float, Help("seconds between checkpoints")] = 30.0
    settings: Annotated[
        Mapping[str, Any] | None, Help("settings of the framework's trainer", python_only=True)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(epochs=self.epochs, base_batch=self.base_batch)
        _ = self.batch_size, self.micro_batch_size
        parse_seconds(self.budget)

    @property
    def batch_size(self) -> int | Literal["auto"]:
        """`batch` as a number, or `"auto"`."""
        return batch_or_auto("batch", self.batch)

    @property
    def micro_batch_size(self) -> int | Literal["auto"]:
        """`micro_batch` as a number, or `"auto"`."""
        return batch_or_auto("micro_batch", self.micro_batch)
