"""What is trained to which target, and what one such training took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """What is trained to which target.

    `target` is the loss on unseen data (of the last 256 training images, for YOLO). Learning rates
    are tried with the first seed, in factors of 2 from `base_rate` at batch size 16 times `growth`
    per doubling, until the best has a worse one on either side; it is run with all seeds. YOLO has
    one for all sizes, the one that Ultralytics' `optimizer=auto` takes for this data set.
    """

    name: str
    target: float
    sizes: tuple[int, ...]
    base_rate: float = 0.0
    growth: float = 1.0
    is_rate_given: bool = False
    seeds: tuple[int, ...] = SEEDS
    most_seconds: float = 120.0


TASKS = {
    task.name: task
    for task in (
        Task("cifar", 1.65, (4, 8, 16, 32, 64, 128, 256), 0.02, 1.41),
        Task("shakespeare", 2.2, (4, 8, 16, 32, 64, 128, 256), 0.008, 1.41),
        Task("yolo26n", 4.0, (4, 8, 16, 32, 64, 128), 0.0014, 1.0, True, (0, 1, 2, 3)),
    )
}


@dataclass(frozen=True)
class Run:
    """One training. `steps`, `examples` and `seconds` are those to the target, if `reached`."""

    task: str
    target: float
    batch_size: int
    learning_rate: float
    seed: int
    reached: bool
    steps: float
    examples: float
    seconds: float


def yolo_settings(size: int, rate: float) -> dict[str, Any]:
    """Ultralytics' training with an update every `size` images, one optimizer and one rate."""
    return {
        "imgsz": 96,
        "batch": size,
        "nbs": size,
        "optimizer": "AdamW",
        "lr0": rate,
        "lrf": 1.0,
        "warmup_epochs": 0,
        "close_mosaic": 0,
        "workers": 0,
        "device": "cpu",
        "val": False,
        "save": False,
        "plots": False,
        "verbose": False,
    }
