"""`tune`: the batch size that reaches the target soonest, and the settings to train with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._fit.result import FitResult
from rightbatch._noise import estimate_from
from rightbatch._progress import Live
from rightbatch._training.facts import TrainingFacts
from rightbatch._training.protocol import Ability, Training, require
from rightbatch._training.resolve import resolve
from rightbatch._training.scaling import Scaling, scaling
from rightbatch._training.updates import DEFAULT_BATCH, most_useful
from rightbatch._tune.advice import Situation, advise
from rightbatch._tune.branches import BranchPlan
from rightbatch._tune.by_trials import ByTrials
from rightbatch._tune.by_worker import ByWorker
from rightbatch._tune.decision import Decision, decide
from rightbatch._tune.measurer import Measurer, Timed
from rightbatch._tune.options import TuneOptions
from rightbatch._tune.pilot import PilotReport
from rightbatch._tune.plan import Branch, Plan
from rightbatch._tune.reason import reason
from rightbatch._tune.throughput import Network, Steps, Throughput, spread
from rightbatch._workload.sizes import sizes_between
from rightbatch._workload.verb import takes

TIMING, PILOT = 0.25, 0.55
"""Shares of the budget. The rest is for `fit` and for starting processes."""
BRANCHES = 0.3
"""Share of the budget for branches."""
LEAST_UPDATES = 10
"""Updates of the branch with the largest size, at least."""


@takes(TuneOptions)
def tune(workload: object, options: TuneOptions, **spec: Any) -> Plan:
    """Find the batch size that reaches the target soonest.

    Measures what fits, how long steps of several sizes take, and the noise scale late in a short
    training of a copy at `base_batch`, the size that the workload's learning rate was chosen for.
    `target` (`"loss=0.45"`, `evaluation_loss`, or a key of `evaluate`) ends that training when it
    is reached. The whole call takes about `budget`. `objective` is `time`, `cost` (the time of all
    devices) or `energy` (NVIDIA GPUs). `processes` extrapolates to that many devices, which
    exchange gradients at `bandwidth` per second. `verify` also trains short branches at half, twice
    and four times the size. `largest` is the result of an earlier `fit`. No size is chosen that
    leaves a training of `epochs` too few updates (`rightbatch._training.updates`); without `epochs`
    the training is assumed to continue until the target. A command is measured by running it: with
    some sizes for a few steps, and at `base_batch` for the noise scale.

    Raises:
        NothingFitsError: if not even one example fits.
        WorkloadError: if the workload failed with an error other than out-of-memory.
        UsageError: for an option that cannot be used.
    """
    training = resolve(workload, **spec)
    if options.verify:
        require(training, Ability.BRANCH, "tune --verify")
    started = time.perf_counter()
    with Live("tune", enabled=options.progress, total=100) as live:
        budget = options.budget_seconds

        def show(text: str) -> None:
            live.show(text, int(100 * (time.perf_counter() - started) / budget))

        measurer = _measurer(training, options, show)
        try:
            largest = options.largest or measurer.fit()
            return _Tuning(measurer, largest, options, started).run()
        finally:
            measurer.stop()


def _measurer(training: Training, options: TuneOptions, show: Callable[[str], object]) -> Measurer:
    if Ability.TRIAL in training.abilities:
        return ByTrials(training, options, show)
    require(training, Ability.LOOP, "tune")
    require(training, Ability.STEP, "tune")
    return ByWorker(training, options, show)


class _Tuning:
    """Measures, decides, and explains the decision."""

    def __init__(
        self, measurer: Measurer, largest: FitResult, options: TuneOptions, started: float
    ) -> None:
        if largest.examples is None and largest.argument is None:
            raise UsageError(
                "tune needs a data set with a length, to know the steps of an epoch; for a stream, "
                "use rightbatch.NoiseScale in your own loop"
            )
        self._measurer = measurer
        self._largest, self._options, self._started = largest, options, started
        self._examples = largest.examples
        base = min(filter(None, (options.base_batch, self._examples)))
        self._base = max(largest.sizes.at_most(base), largest.smallest_batch_size)
        if largest.argument is not None:  # a command runs whole batches in the pilot
            self._base = min(self._base, largest.batch_size)

    def run(self) -> Plan:
        options, largest, measurer = self._options, self._largest, self._measurer
        timed = measurer.time(largest, self._left() * TIMING / (TIMING + PILOT))
        if options.objective == "energy" and not all(timed.watts.get(s) for s in timed.samples):
            raise UsageError(
                f"{largest.device} does not report its energy: objective='energy' needs an "
                "NVIDIA GPU of the Volta generation or later; use 'time' or 'cost'"
            )
        share = BRANCHES if options.verify else 0.0
        report = measurer.pilot(self._base, largest, (0.95 - share) * self._left())
        facts = report.facts
        noise = estimate_from(report.noise.at_weights, notes=facts.notes)
        averaged = estimate_from(report.noise.at_average, notes=facts.notes)
        if noise is None:
            raise UsageError(
                "the noise scale is unknown: no gradient in the pilot's windows was finite; if "
                "the precision is fp16, use bf16, which does not overflow as easily"
            )
        throughput, decision, devices = self._decide(timed, report)
        chosen = decision.chosen
        rule = self._scaling(facts, chosen.batch_size, decision.noise_scale)
        branches = self._branches(decision, facts) if options.verify else ()
        advice = advise(
            Situation(
                chosen=chosen,
                noise=noise,
                averaged=averaged,
                scaling=rule,
                base_batch=self._base,
                examples=self._examples,
                drop_last=facts.drop_last,
                workers=facts.workers,
                batch_norm=facts.batch_norm,
                values_per_channel=timed.values.get(chosen.micro_batch_size),
                loading=throughput.waits_for_loading(chosen.batch_size),
                bf16=timed.bf16 if facts.precision == "fp32" else None,
                unsteady=spread(timed.nearest(chosen.micro_batch_size)),
                losses=list(report.losses),
                target_reached=None if options.target is None else report.reached is not None,
                parts_differ=facts.parts_differ,
                parts_reason=facts.parts_reason,
            )
        )
        per_epoch = self._steps_per_epoch(chosen.batch_size, facts.drop_last)
        in_all = per_epoch * options.epochs if per_epoch and options.epochs else None
        factor = rule.learning_rate_factor
        return Plan(
            batch_size=chosen.batch_size,
            micro_batch_size=chosen.micro_batch_size,
            accumulation=chosen.accumulation,
            learning_rate_factor=factor,
            learning_rate_rule=rule.rule,
            beta2=rule.beta2,
            epsilon_factor=rule.epsilon_factor,
            base_batch=self._base,
            noise_scale=noise,
            averaged_noise_scale=averaged,
            expected=decision.expected,
            advice=tuple(advice),
            steps_per_epoch=per_epoch,
            steps_in_all=in_all,
            epochs=options.epochs,
            largest=largest,
            objective=options.objective,
            processes=devices,
            seconds=time.perf_counter() - self._started,
            reason=reason(decision, largest, options.objective, branches),
            branches=branches,
            command=measurer.command_line(chosen.batch_size, chosen.micro_batch_size, factor),
            samples={size: tuple(steps) for size, steps in sorted(timed.samples.items())},
            seen=report.noise,
        )

    def _steps_per_epoch(self, size: int, drop_last: bool) -> int | None:
        if self._examples is None:
            return None
        return max(self._examples // size, 1) if drop_last else -(-self._examples // size)

    def _left(self) -> float:
        """Return the seconds left of the budget; at least half of it, however long `fit` took."""
        spent = time.perf_counter() - self._started
        return max(self._options.budget_seconds - spent, 0.5 * self._options.budget_seconds)

    def _decide(self, timed: Timed, report: PilotReport) -> tuple[Throughput, Decision, int]:
        """Choose the batch size, and for cost the number of devices: fewer may cost less."""
        options, facts, reached = self._options, report.facts, report.reached
        best: tuple[Throughput, Decision, int] | None = None
        counts = [options.processes]
        if options.objective == "cost":
            counts = sizes_between(1, options.processes)
        for devices in counts:
            network = Network(devices, options.bandwidth_bytes, facts.gradient_bytes)
            throughput = Throughput(
                timed.samples,
                workers=facts.workers,
                network=network,
                accumulates=self._measurer.accumulates,
                seed=options.seed,
            )

            def price(steps: Steps, devices: int = devices) -> float:
                if options.objective != "energy":
                    return devices if options.objective == "cost" else 1
                watts = timed.watts[steps.micro_batch_size]
                return devices * sum(watts) / len(watts)

            decision = decide(
                throughput,
                report.noise,
                self._candidates(devices, timed),
                most=self._most(devices),
                price=price,
                examples_to_target=(self._base, reached.examples) if reached else None,
                seed=options.seed,
            )
            if best is None or decision.price < best[1].price:
                best = throughput, decision, devices
        assert best is not None
        return best

    def _candidates(self, devices: int, timed: Timed) -> list[int]:
        """Return the powers of 2, the default, the base size and the largest that fits.

        Every device gets at least one example. Without accumulation nothing is larger than what
        fits, or between the sizes that the command can have.
        """
        if not self._measurer.accumulates:
            sizes = sorted(timed.samples)
            between = {n * sizes[0] for n in sizes_between(1, sizes[-1] // sizes[0])}
            usual = {DEFAULT_BATCH} & set(range(sizes[0], sizes[-1] + 1, sizes[0]))
            return sorted({*sizes, *between, *usual})
        largest = self._largest.batch_size
        least = self._largest.smallest_batch_size * devices
        most = max(self._most(devices), largest)
        taken = self._largest.sizes
        wanted = (largest, taken.at_most(DEFAULT_BATCH), self._base)
        extra = {size for size in wanted if least <= size <= most}
        return sorted({*taken.between(least, self._most(devices)), *extra})

    def _most(self, devices: int) -> int:
        """Return the largest size that may be chosen, by `max_batch` and the number of updates."""
        if self._examples is None:
            return self._options.max_batch or self._largest.batch_size
        useful = most_useful(self._examples, self._options.epochs)
        wanted = self._options.max_batch or useful
        if self._options.epochs is not None:
            wanted = min(wanted, useful)
        return max(wanted, self._largest.smallest_batch_size * devices)

    def _scaling(self, facts: TrainingFacts, size: int, noise_scale: float) -> Scaling:
        return scaling(facts.betas, self._base, size, noise_scale)

    def _branches(self, decision: Decision, facts: TrainingFacts) -> tuple[Branch, ...]:
        """Train branches of 1/2, 1, 2 and 4 times the chosen size on the same examples."""
        chosen = decision.chosen
        size, least = chosen.batch_size, self._largest.smallest_batch_size
        most = self._examples or size
        half = self._largest.sizes.at_most(size // 2)
        sizes = [s for s in (half, size, 2 * size, 4 * size) if least <= s <= most]
        rules = [self._scaling(facts, size, decision.noise_scale) for size in sizes]
        plans = [
            BranchPlan(
                batch_size=size,
                micro_batch_size=min(size, self._largest.batch_size),
                batch_factor=rule.batch_factor,
                learning_rate_factor=rule.learning_rate_factor,
            )
            for size, rule in zip(sizes, rules, strict=True)
        ]
        seconds = BRANCHES * self._options.budget_seconds / len(sizes)
        examples = int(max(seconds * chosen.examples_per_second, LEAST_UPDATES * sizes[-1]))
        return self._measurer.branches(plans, examples)
