"""The options of `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from rightbatch._errors import UsageError
from rightbatch._units import parse_bytes
from rightbatch._workload.options import Help, Inference, Options, Seed, check_at_least_one

Sharding = Literal["zero1", "zero2", "zero3"]
"""What is sharded over processes: the optimizer's state; gradients as well; parameters as well."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """What `rightbatch.predict` takes beside the workload."""

    batch: Annotated[int, Help("examples per step", cli_default=None)]
    gpu: Annotated[str | None, Help('its name, for example "RTX 4090", or all')] = None
    memory: Annotated[int | str | None, Help("a GPU of this size, for example 24GiB")] = None
    processes: Annotated[int, Help("GPUs that train together")] = 1
    sharding: Annotated[
        Sharding | None,
        Help("over the processes: zero1 the optimizer, zero2 gradients too, zero3 (FSDP2) all"),
    ] = None
    solve: Annotated[
        str | None,
        Help("find the largest value of this argument of the factory that fits"),
    ] = None
    inference: Inference = False
    remedies: Annotated[bool, Help("also predict what ways to save memory would save")] = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(batch=self.batch, processes=self.processes)
        if self.gpu is not None and self.memory is not None:
            raise UsageError("give a GPU or a memory, not both")
        _ = self.memory_bytes
        if self.solve is not None and (self.limit_is_unknown or self.gpu == "all"):
            raise UsageError(f"--solve {self.solve} needs one GPU (--gpu) or a memory (--memory)")
        if self.solve == "batch":
            raise UsageError("the largest batch is part of every answer; leave --solve batch out")
        if self.sharding is None:
            return
        if self.sharding not in get_args(Sharding):
            known = ", ".join(get_args(Sharding))
            raise UsageError(f"unknown sharding {self.sharding!r}; there are {known}")
        if self.processes == 1:
            raise UsageError(f"{self.sharding} shards over GPUs; say over how many (--processes)")
        if self.inference and self.sharding != "zero3":
            raise UsageError(f"{self.sharding} shards what inference does not have; take zero3")

    @property
    def limit_is_unknown(self) -> bool:
        """Whether there is no GPU and no memory to fit into."""
        return self.gpu is None and self.memory is None

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)
