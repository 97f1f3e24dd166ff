"""What a run's process is told."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import RunKey


@dataclass(frozen=True)
class RunPlan:
    """Which run of a study to train, and how.

    The learning rate is that of the workload, which was chosen for `config.base_batch`, by the
    options' `rule`: `"scaling"` as `rightbatch._training.scaling` has it (for SGD with
    `noise_scale`, which was given or measured by an earlier run), `"none"` as it is; times the
    key's factor. The run ends after the options' epochs or training time, or at `config.target`.
    """

    key: RunKey
    config: StudyConfig
    noise_scale: float | None = None

    @property
    def options(self) -> StudyOptions:
        """The study's."""
        return self.config.options
