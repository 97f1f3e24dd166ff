"""Measures a training for `tune` in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rightbatch._fit.fit import largest_batch
from rightbatch._fit.result import FitResult
from rightbatch._training.protocol import Training
from rightbatch._training.updates import most_useful
from rightbatch._tune.branches import BranchPlan
from rightbatch._tune.measurer import Timed
from rightbatch._tune.options import TuneOptions
from rightbatch._tune.pilot import PilotPlan, PilotReport
from rightbatch._tune.plan import Branch
from rightbatch._tune.process import TuneProcess
from rightbatch._tune.timing import Timing, raise_build_errors
from rightbatch._worker import BuildError, header_for

SCHEDULED_EPOCHS = 10
"""Epochs that the pilot's schedule is made for, if `epochs` is not given."""


class ByWorker:
    """A `Measurer` whose training opens sessions and loops."""

    accumulates = True

    def __init__(
        self, training: Training, options: TuneOptions, show: Callable[[str], object]
    ) -> None:
        self._header = header_for(
            training, device=options.device, margin=options.margin, seed=options.seed
        )
        self._options, self._show = options, show
        self._processes = ExitStack()
        self._trainer: TuneProcess | None = None

    def fit(self) -> FitResult:
        options = self._options
        return largest_batch(
            self._header,
            options.memory_bytes,
            max_batch=options.max_batch,
            useful=lambda examples: most_useful(examples, options.epochs),
            show=self._show,
        )

    def time(self, largest: FitResult, seconds: float) -> Timed:
        process = self._processes.enter_context(TuneProcess(self._header))
        timing = Timing(process, self._options.memory_bytes, self._show)
        sizes = largest.sizes.between(largest.smallest_batch_size, largest.batch_size)
        timing.run(sizes, seconds)
        process.stop()
        return Timed(timing.samples, timing.watts, timing.values, timing.bf16)

    def pilot(self, base: int, largest: FitResult, seconds: float) -> PilotReport:
        """Train the pilot; halve its micro-batch if it does not fit beside the averaged weights."""
        options, least = self._options, largest.smallest_batch_size
        plan = PilotPlan(
            batch_size=base,
            micro_batch_size=min(base, largest.batch_size),
            seconds=seconds,
            sizes=largest.sizes,
            epochs=options.epochs or SCHEDULED_EPOCHS,
            target=options.metric_target,
            seed=options.seed,
        )
        while True:
            process = self._processes.enter_context(TuneProcess(self._header))
            try:
                report = process.pilot(plan, options.memory_bytes, self._show)
                self._trainer = process
                return report
            except BuildError as error:
                if error.outcome == "failed" or plan.micro_batch_size <= least:
                    raise error.failure.as_error("the workload failed during tuning") from None
            process.stop()
            half = largest.sizes.at_most(plan.micro_batch_size // 2)
            plan = replace(plan, micro_batch_size=max(half, least))

    def branches(self, plans: Sequence[BranchPlan], examples: int) -> tuple[Branch, ...]:
        trainer = self._trainer
        assert trainer is not None
        return raise_build_errors(lambda: trainer.branches(plans, examples, self._show))

    def command_line(self, size: int, micro: int, rate_factor: float) -> str | None:
        return None

    def stop(self) -> None:
        self._processes.close()
