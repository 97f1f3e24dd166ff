"""The parts of the run, most important first, and how long each may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One process: `run(report)` of `module`, ended after `seconds`.

    `requires` are packages without which nothing of it can run; `environment` are variables that
    its process gets.
    """

    name: str
    seconds: float
    about: str
    requires: tuple[str, ...] = ("torch",)
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = ""

    def __post_init__(self) -> None:
        if not self.module:
            object.__setattr__(self, "module", f"benchmarks.gpu.{self.name}")


MOST_SECONDS = 480
"""The limits of all parts add up to no more."""

PROBES = ("torch", "cloudpickle", "rich")
"""What `fit`, `predict` and `tune` need to send a factory to a process of their own."""

PARTS = (
    Part("environment", 45, "versions, the device's limits, the device contract"),
    Part("predict", 125, "predicted memory against measured memory, eight workloads"),
    Part("fit", 135, "the batch size found against the largest that a plain loop survives", PROBES),
    Part(
        "elastic",
        50,
        "the cost of Elastic, and survived out-of-memory errors",
        # cuBLAS is deterministic only with a workspace that is set.
        environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    ),
    Part("tune", 100, "the chosen batch size against 16 and the largest; noise; energy", PROBES),
    Part("serve", 25, "batches under three latency targets"),
)
