"""The options of `fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rightbatch._errors import UsageError
from rightbatch._workload.options import Help, Inference, ProbeOptions, check_at_least_one


@dataclass(frozen=True, kw_only=True)
class FitOptions(ProbeOptions):
    """What `rightbatch.fit` takes in addition to the workload."""

    inference: Inference = False
    multiple: Annotated[int, Help("try only multiples of this size")] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(multiple=self.multiple)
        if self.max_batch is not None and self.max_batch < self.multiple:
            raise UsageError(
                f"max_batch={self.max_batch} is less than multiple={self.multiple}, so that no "
                "batch size can be tried; give a larger max_batch or a smaller multiple"
            )
