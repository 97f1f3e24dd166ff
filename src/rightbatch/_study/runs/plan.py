"""The plan of a run, which is sent to its process."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import RunKey


@dataclass(frozen=True)
class RunPlan:
    """Which run of a study to train, and how.

    The learning rate of the workload, which was chosen for `config.base_batch`, is scaled by the
    options' `rule`: `"scaling"` (see `rightbatch._training.scaling`; for SGD with `noise_scale`,
    which is given or measured by an earlier run) or `"none"`. Then it is multiplied by the key's
    factor. The run ends after the options' epochs, steps or training time, or at `config.target`.
    """

    key: RunKey
    config: StudyConfig
    noise_scale: float | None = None

    @property
    def options(self) -> StudyOptions:
        """The options of the study."""
        return self.config.options
