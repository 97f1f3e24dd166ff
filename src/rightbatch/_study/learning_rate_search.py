"""Search for the best learning rate of each batch size with Optuna's TPE sampler.

A rule for the learning rate may suit one size better than another, and the difference would look
like an effect of the size. So each size gets the same number of trials, with one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rightbatch._errors import MissingExtraError
from rightbatch._study.analysis.steps_to_target import TRAINING_LOSS, find_crossing, smooth
from rightbatch._study.config import StudyConfig
from rightbatch._study.records import Run, RunKey, Target
from rightbatch._training.targets import is_better

LOW, HIGH = 0.1, 10.0
"""Bounds of the factor on the rule's learning rate."""
DIGITS = 3
"""Significant digits of a factor: a rate matters by its logarithm, and keys should be readable."""
RANDOM_TRIALS = 3
"""Trials before the estimator is used; the first has the rule's own rate."""
_DRAWS = 100  # attempts to draw a factor that was not tried yet

Trial = tuple[float, Run]
"""A factor, and the run that trained with it."""


def search_learning_rates(
    config: StudyConfig,
    trials: int,
    train: Callable[[Sequence[RunKey]], Mapping[RunKey, Run]],
    known: Sequence[Run] = (),
) -> list[RunKey]:
    """Find the best of `trials` learning rates for each size, and return the runs of the study.

    The trials use the first seed. They are trained in rounds of one per size, which may run at the
    same time. A trial depends only on earlier ones, so an interrupted search continues without
    repeating any.

    Args:
        config: sizes, seeds and the target.
        trials: number per size; the first has the rule's own rate.
        train: trains the runs that are not done, and returns all of them from the store.
        known: all attempts of finished runs; an interrupted run is not finished.

    Raises:
        MissingExtraError: without optuna.
    """
    _optuna()
    grid, seed, found = config.keys(), config.seeds[0], _known_trials(config, known)
    sizes = [key.batch_size for key in grid if key.seed == seed]
    while True:
        factors = {size: next_factor(found[size], config, trials, size) for size in sizes}
        still = {size: factor for size, factor in factors.items() if factor is not None}
        if not still:
            break
        behind = min(len(found[size]) for size in still)  # after an interruption some are ahead
        keys = [
            RunKey(size, seed, factor)
            for size, factor in still.items()
            if len(found[size]) == behind
        ]
        runs = train(keys)
        for key in keys:
            found[key.batch_size].append((key.learning_rate_factor, runs[key]))
    best = {size: best_factor(found[size], config.target) for size in sizes}
    return [replace(key, learning_rate_factor=best[key.batch_size]) for key in grid]


def next_factor(
    tried: Sequence[Trial], config: StudyConfig, trials: int, size: int
) -> float | None:
    """Return the next factor for a size; None if its search is over.

    It is over after `trials` trials, or after an out-of-memory error, which no rate changes.
    """
    factors = [factor for factor, _ in tried]
    if len(tried) >= trials or any(run.status == "out_of_memory" for _, run in tried):
        return None
    if 1.0 not in factors:
        return 1.0
    optuna = _optuna()
    factor_of = {"factor": optuna.distributions.FloatDistribution(LOW, HIGH, log=True)}
    source = np.random.SeedSequence([abs(config.seeds[0]), size, len(tried)])
    sampler = optuna.samplers.TPESampler(
        seed=int(source.generate_state(1)[0]), n_startup_trials=RANDOM_TRIALS
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it logs every study
    try:
        study = optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
    # With one objective TPE uses only the order of the trials, so their ranks can be the values.
    for factor, rank in zip(factors, ranks([run for _, run in tried], config.target), strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                params={"factor": factor}, distributions=factor_of, value=rank
            )
        )
    for _ in range(_DRAWS):
        drawn = rounded(study.ask(factor_of).params["factor"])
        if drawn not in factors:
            return drawn
    return None


def best_factor(tried: Sequence[Trial], target: Target | None) -> float:
    """Return the factor of the best trial; among equals the one closest to 1."""
    order = ranks([run for _, run in tried], target)
    best = min(zip(order, tried, strict=True), key=lambda one: (one[0], abs(math.log(one[1][0]))))
    return best[1][0]


def ranks(runs: Sequence[Run], target: Target | None) -> list[int]:
    """Return the rank of each run: 0 for the best, equal for equals.

    Runs that reached the target come first, by the steps it took them; then the others, by the
    last value of the target's metric, or of the evaluation or training loss; those that diverged,
    failed or ran out of memory come last.
    """
    scores = [_score(run, target) for run in runs]
    order = sorted(set(scores))
    return [order.index(score) for score in scores]


def rounded(factor: float) -> float:
    """Round to three digits, within the bounds.

    >>> rounded(1.23456), rounded(0.098765), rounded(10.01)
    (1.23, 0.1, 10.0)
    """
    return min(max(float(f"{factor:.{DIGITS}g}"), LOW), HIGH)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "search") from None
    return optuna


def _score(run: Run, target: Target | None) -> tuple[int, float]:
    """Return the sort key of a run; smaller is better."""
    if run.status not in ("finished", "stopped"):
        return 3, 0.0
    at = find_crossing(run, target)
    if at is not None and math.isfinite(at.steps):
        return 0, at.steps
    names = ("evaluation_loss", TRAINING_LOSS) if target is None else (target.metric,)
    for name in names:
        value = _last(run, name)
        if value is not None:
            return 1, value if is_better(name, 0.0, 1.0) else -value
    return 2, 0.0


def _last(run: Run, name: str) -> float | None:
    """Return the last value of a metric; the training loss is smoothed, since steps are noisy."""
    curve = run.curves.get(name)
    value = run.metrics.get(name, math.nan)
    if curve is not None and len(curve.values):
        _, means = smooth(run, curve) if name == TRAINING_LOSS else ((), curve.values)
        value = float(means[-1]) if len(means) else value
    return value if math.isfinite(value) else None


def _known_trials(config: StudyConfig, known: Sequence[Run]) -> dict[int, list[Trial]]:
    """Return trials by size in the order of training; of several attempts the newest."""
    found: dict[int, dict[float, Run]] = {size: {} for size in config.batches}
    for run in sorted(known, key=lambda run: run.started):
        size, factor = run.batch_size, run.learning_rate_factor
        if size in found and run.seed == config.seeds[0] and LOW <= factor <= HIGH:
            found[size].pop(factor, None)
            found[size][factor] = run
    return {size: list(tried.items()) for size, tried in found.items()}
