"""The options of `run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rightbatch._errors import UsageError
from rightbatch._workload.options import Help, Margin, Options, check_at_least_one


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What `rightbatch.run` takes in addition to the command."""

    steps: Annotated[int | None, Help("end the command after this many steps")] = None
    report: Annotated[str | Path | None, Help("write the report as JSON to this file")] = None
    to: Annotated[str | None, Help("keep it as a run here as well: mlflow")] = None
    stdout_to_stderr: Annotated[
        bool, Help("send the command's output to stderr", python_only=True)
    ] = False
    memory: Annotated[
        int | str | None, Help("say what would fit into this memory; default: the device's")
    ] = None
    margin: Margin = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(steps=self.steps)
        if self.to not in (None, "mlflow"):
            raise UsageError(f"a run can be kept in mlflow, not in {self.to!r}")
