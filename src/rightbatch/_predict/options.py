"""The options of `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rightbatch._errors import UsageError
from rightbatch._units import parse_bytes
from rightbatch._workload.options import Help, Inference, Options, Seed, check_at_least_one


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """What `rightbatch.predict` takes beside the workload."""

    batch: Annotated[int, Help("examples per step", cli_default=None)]
    gpu: Annotated[str | None, Help('its name, for example "RTX 4090", or all')] = None
    memory: Annotated[int | str | None, Help("a GPU of this size, for example 24GiB")] = None
    processes: Annotated[int, Help("GPUs that train together")] = 1
    inference: Inference = False
    remedies: Annotated[bool, Help("also predict what ways to save memory would save")] = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(batch=self.batch, processes=self.processes)
        if self.gpu is not None and self.memory is not None:
            raise UsageError("give a GPU or a memory, not both")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)
