"""The learning rate that suits each batch size, searched for with Optuna's TPE.

A rule for the learning rate may be wrong for one size more than for another, which would be taken
for an effect of the size. So each size gets the same number of trials, with one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rightbatch._study.analysis.steps_to_target import TRAINING_LOSS, reached, smoothed
from rightbatch._study.config import StudyConfig
from rightbatch._study.optuna_studies import optuna_module, study_in_memory
from rightbatch._study.records import Run, RunKey, Target
from rightbatch._training.targets import is_better

LOW, HIGH = 0.1, 10.0
"""Bounds of the factor on the learning rate that the rule gives."""
DIGITS = 3
"""Of a factor: a rate matters by its logarithm, and keys are to be readable."""
RANDOM_TRIALS = 3
"""With the rule's own rate the first; the estimator has something to go by from then on."""
_DRAWS = 100  # for a factor that was not tried, before there seem to be no more

Trial = tuple[float, Run]
"""A factor, and the run that was trained with it."""


def searched(
    config: StudyConfig,
    trials: int,
    train: Callable[[Sequence[RunKey]], Mapping[RunKey, Run]],
    known: Sequence[Run] = (),
) -> list[RunKey]:
    """The runs of a study, each size with the best of so many learning rates for it.

    The trials have the first seed. They are trained in rounds of one for each size, which may go
    on at the same time. The next trial depends on nothing but those before it, so a search that was
    interrupted goes on as if it had not been, and repeats nothing.

    Args:
        config: sizes, seeds and the target.
        trials: for each size; the first has the rule's own rate.
        train: trains the runs that are not done, and returns all of them as the store has them.
        known: runs that are done, all their tries; one that was interrupted is not done.

    Raises:
        MissingExtraError: without optuna.
    """
    optuna_module()
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
    """Which factor a size should try after those; None where the search for it is over.

    It is over after so many `trials`, and where memory does not suffice, whatever the rate.
    """
    factors = [factor for factor, _ in tried]
    if len(tried) >= trials or any(run.status == "out_of_memory" for _, run in tried):
        return None
    if 1.0 not in factors:
        return 1.0
    optuna = optuna_module()
    factor_of = {"factor": optuna.distributions.FloatDistribution(LOW, HIGH, log=True)}
    source = np.random.SeedSequence([abs(config.seeds[0]), size, len(tried)])
    sampler = optuna.samplers.TPESampler(
        seed=int(source.generate_state(1)[0]), n_startup_trials=RANDOM_TRIALS
    )
    study = study_in_memory(sampler=sampler)
    # Of one objective TPE takes the order of the trials only, so their ranks are values as good.
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
    """The factor of the best trial; of equals the one that is nearest to the rule."""
    order = ranks([run for _, run in tried], target)
    best = min(zip(order, tried, strict=True), key=lambda one: (one[0], abs(math.log(one[1][0]))))
    return best[1][0]


def ranks(runs: Sequence[Run], target: Target | None) -> list[int]:
    """0 for the best run; equals have equal ranks.

    Runs that reached the target come first, by the steps it took them; then the others, by the
    last value of the target's metric, or of the evaluation or training loss; those that diverged,
    failed or ran out of memory come last.
    """
    scores = [_score(run, target) for run in runs]
    order = sorted(set(scores))
    return [order.index(score) for score in scores]


def rounded(factor: float) -> float:
    """To three digits, within the bounds.

    >>> rounded(1.23456), rounded(0.098765), rounded(10.01)
    (1.23, 0.1, 10.0)
    """
    return min(max(float(f"{factor:.{DIGITS}g}"), LOW), HIGH)


def _score(run: Run, target: Target | None) -> tuple[int, float]:
    """The less the better."""
    if run.status not in ("finished", "stopped"):
        return 3, 0.0
    at = reached(run, target)
    if at is not None and math.isfinite(at.steps):
        return 0, at.steps
    names = ("evaluation_loss", TRAINING_LOSS) if target is None else (target.metric,)
    for name in names:
        value = _last(run, name)
        if value is not None:
            return 1, value if is_better(name, 0.0, 1.0) else -value
    return 2, 0.0


def _last(run: Run, name: str) -> float | None:
    """The training loss over as many examples as elsewhere, since a step's own is chance."""
    curve = run.curves.get(name)
    value = run.metrics.get(name, math.nan)
    if curve is not None and len(curve.values):
        _, means = smoothed(run, curve) if name == TRAINING_LOSS else ((), curve.values)
        value = float(means[-1]) if len(means) else value
    return value if math.isfinite(value) else None


def _known_trials(config: StudyConfig, known: Sequence[Run]) -> dict[int, list[Trial]]:
    """By size, in the order in which they were trained; of several tries the newest."""
    found: dict[int, dict[float, Run]] = {size: {} for size in config.batches}
    for run in sorted(known, key=lambda run: run.started):
        size, factor = run.batch_size, run.learning_rate_factor
        if size in found and run.seed == config.seeds[0] and LOW <= factor <= HIGH:
            found[size].pop(factor, None)
            found[size][factor] = run
    return {size: list(tried.items()) for size, tried in found.items()}
