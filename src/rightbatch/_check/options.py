"""The options of `check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rightbatch._errors import UsageError
from rightbatch._units import parse_bytes
from rightbatch._workload.options import Help, Inference, Options, Seed, check_at_least_one


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Options):
    """What `rightbatch.check` takes beside the workload."""

    batch: Annotated[int | None, Help("examples per step; default: that of the budget")] = None
    gpu: Annotated[str | None, Help('its name, for example "RTX 4090"')] = None
    memory: Annotated[int | str | None, Help("a GPU of this size, for example 24GiB")] = None
    against: Annotated[str | Path | None, Help("the file of a budget to compare with")] = None
    write: Annotated[str | Path | None, Help("write the budget into this file")] = None
    tolerance: Annotated[float, Help("share by which the peak may exceed the budget")] = 0.02
    inference: Inference = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch is not None:
            check_at_least_one(batch=self.batch)
        if self.gpu is not None and self.memory is not None:
            raise UsageError("give a GPU or a memory, not both")
        if self.gpu == "all":
            raise UsageError("a budget is for one GPU; give its name")
        if not 0 <= self.tolerance < 1:
            raise UsageError(f"the tolerance is a share from 0 to 1; got {self.tolerance:g}")
        if self.memory is not None:
            parse_bytes(self.memory)
        if self.against is None and (self.batch is None or (self.gpu or self.memory) is None):
            raise UsageError(
                "check takes --batch N and a GPU (--gpu NAME or --memory SIZE), or a budget with "
                "both (--against FILE)"
            )
