"""What a run's process is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rightbatch._study.records import RunKey, Target


@dataclass(frozen=True)
class RunPlan:
    """What a run's process is told: how to train, and when it is over.

    The learning rate is that of the workload, which was chosen for `base_batch`, by `rule`: with
    `"scaling"` as `rightbatch._training.scaling` has it (for SGD with `noise_scale`), with `"none"`
    as it is; times the key's factor. It ends after `epochs`, after `seconds` of training, or at the
    `target`.
    """

    key: RunKey
    epochs: int
    base_batch: int
    rule: str = "scaling"
    noise_scale: float | None = None
    micro_batch: int | str = "auto"
    target: Target | None = None
    seconds: float | None = None
    memory: int | None = None
    margin: float = 0.05
    processes: int = 1
    sharpness: bool = False
    settings: dict[str, Any] | None = None
