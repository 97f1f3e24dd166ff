"""The learning rates of a study's runs, where `{learning_rate}` stands in the command.

The rule depends on the optimizer, and its start is the rate at the base size. A run at the base
size shows both; they are kept for the other runs, also of a later call.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch._errors import UsageError
from rightbatch._study.runs.plan import RunPlan
from rightbatch._training.protocol import Betas, Training
from rightbatch.integrations.command.observed import Observed

if TYPE_CHECKING:
    from rightbatch.integrations.command.command import Command


@dataclass(frozen=True)
class Shown:
    """What a run has shown: the script's own learning rate, if it was used, and the betas."""

    learning_rate: float | None
    betas: Betas


class RunRates:
    """Gives each run its learning rate; `file` keeps what a run has shown."""

    def __init__(self, command: Command, file: Path) -> None:
        self._command, self._file = command, file

    def rate_of(self, plan: RunPlan) -> float | None:
        """Return the rate of a run; None for the script's own, which is what the base size has.

        Raises:
            UsageError: if it depends on what no run has shown yet.
        """
        if "learning_rate" not in self._command.template.names:
            return None
        key, base = plan.key, plan.config.base_batch
        has_rule = plan.options.rule != "none" and key.batch_size != base
        shown = self._read()
        rate = self._command.learning_rate
        if rate is None and shown is not None:
            rate = shown.learning_rate
        if rate is None and not has_rule and key.learning_rate_factor == 1:
            return None
        if has_rule and shown is None:
            raise UsageError(
                f"the learning rate of {key} depends on the optimizer, which a run at batch size "
                f"{base} shows: add {base} to the batches, give the size that the rate is for with "
                "--base-batch, or keep the rate with --rule none"
            )
        if rate is None:
            raise UsageError(
                f"the learning rate of {key} is a multiple of the command's own, which is not "
                "known yet: give it with --learning-rate"
            )
        return learning_rate_of(self._command, plan, shown.betas if shown else None, rate)

    def learn(self, plan: RunPlan, observed: Observed, given: float | None) -> None:
        """Keep what a run at the base size has shown; `given` is the rate that it was started with.

        With `--rule none` every size has the script's own rate.
        """
        is_base = plan.options.rule == "none" or plan.key.batch_size == plan.config.base_batch
        ranks = observed.trainers
        if not (is_base and ranks and ranks[0].knows_betas):
            return
        before = self._read()
        rate = ranks[0].learning_rate if given is None else None
        if rate is None and before is not None:
            rate = before.learning_rate
        self._file.write_text(json.dumps(asdict(Shown(rate, ranks[0].betas))))

    def _read(self) -> Shown | None:
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return None
        betas = found["betas"]
        return Shown(found["learning_rate"], (betas[0], betas[1]) if betas else None)


def learning_rate_of(command: Training, plan: RunPlan, betas: Betas, rate: float) -> float:
    """Return the learning rate of a run; `rate` is that of the base size.

    Raises:
        UsageError: if the rule needs a noise scale that is not known.
    """
    key = plan.key
    if plan.options.rule == "none" or key.batch_size == plan.config.base_batch:
        return rate * key.learning_rate_factor
    from rightbatch._study.runs.training import factors_of  # imports torch

    return rate * factors_of(command, plan, betas)[1]
