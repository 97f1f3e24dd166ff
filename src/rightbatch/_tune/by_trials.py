"""Measures a training for `tune` that is a command: each measurement is a run of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

from rightbatch._errors import UsageError
from rightbatch._fit.fit import check_device, largest_by_trials
from rightbatch._fit.result import FitResult
from rightbatch._fit.source import TrialSource
from rightbatch._noise import NoiseWindow
from rightbatch._training.facts import TrainingFacts
from rightbatch._training.protocol import Training
from rightbatch._training.sampled_noise import OF_LAYERS, later, observations
from rightbatch._training.trial import Trial, TrialRequest
from rightbatch._training.updates import most_useful
from rightbatch._training.watched import Watched
from rightbatch._tune.branches import BranchPlan
from rightbatch._tune.measurer import Timed
from rightbatch._tune.options import TuneOptions
from rightbatch._tune.pilot import LossAverage, PilotReport, Reached
from rightbatch._tune.plan import Branch
from rightbatch._worker.failure import Failure
from rightbatch._workload.sizes import sizes_between
from rightbatch._workload.workload import StepSeconds

_WARM_UP = 3  # steps that are slower than the others
_LEAST_STEPS, _MOST_STEPS = 6, 200  # that are timed for one size
_LEAST_SIZES = 3  # that are timed, however short the budget is


class ByTrials:
    """A `Measurer` whose training is a command.

    All batch sizes are examples per step as they were seen; `_factor` of them belong to one of
    `{batch}`, because of ranks or of accumulation that the command does by itself.
    """

    def __init__(
        self, training: Training, options: TuneOptions, show: Callable[[str], object]
    ) -> None:
        check_device(options.device)
        if options.target is not None and options.target.partition("=")[0].strip() != "loss":
            raise UsageError(
                "of a command's metrics, tune sees only the training loss: give a target such as "
                "loss=0.5, or compare sizes by another metric with `rightbatch study --metric`"
            )
        if options.processes > 1:
            raise UsageError(
                "tune measures a command with the processes that it starts: leave --processes out, "
                "and put them into the command, as torchrun does"
            )
        self._training, self._options, self._show = training, options, show
        self._source = TrialSource(training, options.margin)
        self._factor = 1
        self._rate: float | None = None

    @property
    def accumulates(self) -> bool:
        return self._training.accumulates

    def fit(self) -> FitResult:
        options = self._options
        found = largest_by_trials(
            self._source,
            options.memory_bytes,
            max_batch=options.max_batch,
            show=self._show,
            useful=lambda examples: most_useful(examples, options.epochs),
        )
        seen = [t for t in self._source.trials if t.outcome == "ok" and t.examples_per_step]
        if len({(t.examples_per_step or 0) / t.argument for t in seen}) > 1:
            pairs = {t.argument: t.examples_per_step for t in seen}
            sizes = ", ".join(f"{pairs[argument]} at {argument}" for argument in sorted(pairs))
            raise UsageError(
                f"the examples of a step do not follow {{batch}}: {sizes}. Let the command keep "
                "its accumulation fixed (Ultralytics: nbs={batch})"
            )
        return found

    def time(self, largest: FitResult, seconds: float) -> Timed:
        samples: dict[int, list[StepSeconds]] = {}
        self._factor = max(largest.batch_size // (largest.argument or largest.batch_size), 1)
        if not self._source.trials:  # the result of an earlier `fit` was given
            request = TrialRequest(_WARM_UP + _LEAST_STEPS, self._options.memory_bytes)
            self._trial(largest.batch_size, request)
        end = time.perf_counter() + seconds
        sizes = self._sizes(largest, seconds)
        for number, size in enumerate(sizes):
            each = max(end - time.perf_counter(), 0.0) / (len(sizes) - number)
            self._show(f"timing steps of {size} examples")
            steps = _WARM_UP + self._steps(size, each)
            trial = self._trial(size, TrialRequest(steps, self._options.memory_bytes))
            samples[size] = [
                StepSeconds(waited, max(whole - waited, 0.0), 0.0)
                for whole, waited in list(
                    zip(trial.step_seconds, trial.waited_seconds, strict=True)
                )[_WARM_UP:]
            ]
        return Timed({size: steps for size, steps in samples.items() if steps})

    def pilot(self, base: int, largest: FitResult, seconds: float) -> PilotReport:
        """Run the command at the base size, from its start.

        Raises:
            UsageError: if nothing of its noise scale was seen.
        """
        end, target, began = time.perf_counter() + seconds, self._options.metric_target, 0.0

        def is_enough(watched: Watched) -> bool:
            nonlocal began
            if not watched.steps:
                return False
            began = began or time.perf_counter()
            losses = _losses(watched)
            loss = f"loss {losses[-1][1]:.4g} " if losses else ""
            self._show(f"pilot: {loss}after {watched.steps} steps")
            reached = target is not None and _reached(watched, target[1]) is not None
            # Starting a command may take longer than a short budget.
            return reached or time.perf_counter() > max(end, began + seconds / 2)

        # Without the limit: looking at gradients takes memory that the training does not need.
        request = TrialRequest(None, seed=self._options.seed, is_enough=is_enough)
        trial = self._trial(base, request)
        watched = trial.watched
        assert watched is not None
        seen = observations(later(watched.updates), self._options.seed)
        if len(seen.pairs) < 2:
            why = watched.no_noise or f"only {len(seen.pairs)} of its steps were sampled"
            raise UsageError(
                f"the noise scale is unknown: {why}. Give a longer --budget, or compare sizes by "
                "training at each with `rightbatch study`"
            )
        self._rate = watched.learning_rate
        losses = _losses(watched)
        return PilotReport(
            steps=watched.steps,
            examples=losses[-1][0] if losses else watched.steps * base,
            losses=tuple(losses),
            noise=NoiseWindow(tuple(seen.pairs), ()),
            reached=None if target is None else _reached(watched, target[1]),
            facts=TrainingFacts(
                optimizer="",
                betas=watched.betas,
                batch_norm=False,
                gradient_bytes=0,
                workers=0,  # its waiting is what the steps have waited
                drop_last=False,
                precision=None,
                notes=(OF_LAYERS,) if any(each.of_layers for each in watched.updates) else (),
            ),
        )

    def branches(self, plans: Sequence[BranchPlan], examples: int) -> tuple[Branch, ...]:
        raise NotImplementedError  # `tune` has refused it

    def command_line(self, size: int, micro: int, rate_factor: float) -> str | None:
        sizes = {"batch": size, "micro_batch": micro, "accumulation": max(size // micro, 1)}
        values: dict[str, object] = {
            name: value if name == "accumulation" else value // self._factor
            for name, value in sizes.items()
        }
        if self._rate is not None:
            values["learning_rate"] = f"{self._rate * rate_factor:.4g}"
        return self._training.command_line(values)

    def stop(self) -> None:
        """Every trial has ended already."""

    def _trial(self, size: int, request: TrialRequest) -> Trial:
        trial = self._source.run(max(size // self._factor, 1), request)
        if trial.outcome != "ok":
            failure = trial.failure or Failure("Trial", f"it ended as {trial.outcome}", "")
            raise failure.as_error(f"the command failed with {size} examples per step")
        return trial

    def _sizes(self, largest: FitResult, seconds: float) -> list[int]:
        """Return as many sizes as there is time for, evenly spaced, with the largest and the base.

        A trial has to start the command, which often takes longer than the steps.
        """
        factor = self._factor
        base = min(max(self._options.base_batch, factor), largest.batch_size)
        most = largest.batch_size // factor
        least = min(largest.smallest_batch_size, most)
        known = [factor * argument for argument in sizes_between(least, most)]
        starts = [t.seconds - sum(t.step_seconds) for t in self._source.trials]
        steps = [median(t.step_seconds) for t in self._source.trials if t.step_seconds]
        cost = median(starts) + (_WARM_UP + _LEAST_STEPS) * median(steps)
        count = max(int(seconds / cost), _LEAST_SIZES)
        if len(known) > count:
            places = {round(n * (len(known) - 1) / (count - 1)) for n in range(count)}
            known = [known[place] for place in sorted(places)]
        return sorted({*known, base - base % factor, largest.batch_size})

    def _steps(self, size: int, seconds: float) -> int:
        """Return how many steps take about `seconds`, from those of the nearest size."""
        seen = [t for t in self._source.trials if t.step_seconds]
        nearest = min(seen, key=lambda t: abs(t.argument * self._factor - size))
        start = nearest.seconds - sum(nearest.step_seconds)
        each = median(nearest.step_seconds) or 1e-4
        return int(min(max((seconds - start) / each, _LEAST_STEPS), _MOST_STEPS))


def _losses(watched: Watched) -> list[tuple[int, float]]:
    """Return pairs of examples and the averaged loss; a step's micro-batches count equally."""
    by_step: dict[int, list[float]] = {}
    for step, loss in watched.losses:
        by_step.setdefault(step, []).append(loss)
    average = LossAverage()
    for step, losses in by_step.items():
        average.add((step + 1) * (watched.batch_size or 1), sum(losses) / len(losses))
    return average.values


def _reached(watched: Watched, wanted: float) -> Reached | None:
    """Return when the averaged loss was first below `wanted`."""
    size = watched.batch_size or 1
    for examples, loss in _losses(watched):
        steps = examples // size
        if loss <= wanted and steps >= LossAverage.SETTLED:
            return Reached(steps, examples, sum(watched.step_seconds[:steps]))
    return None
