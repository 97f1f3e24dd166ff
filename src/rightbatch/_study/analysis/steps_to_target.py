"""When a run reached a target: steps, examples and seconds, between two measurements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rightbatch._study.analysis.cache import once_per_run
from rightbatch._study.records import Curve, Reached, Run, Target
from rightbatch._training.targets import is_better

TRAINING_LOSS = "loss"
WINDOW_SHARE = 0.2
"""Of the examples seen so far, over which the training loss is averaged."""
WINDOW_EXAMPLES = 512
"""At least so many, or an epoch where that is less: a few examples reach any loss by chance."""

_Array = NDArray[np.float64]


@once_per_run
def reached(run: Run, target: Target | None) -> Reached | None:
    """When the metric was first as good as wanted; None where it never was, or nothing is wanted.

    Between that measurement and the one before, the metric is taken to change evenly with the
    logarithm of the steps, as learning curves roughly do, and the run to have kept its speed. A
    first measurement that is good enough counts as it stands.

    The training loss is noisy, and noisier the fewer examples a step has. It is averaged over a
    window of examples, not of steps, so that one chance dip is as likely at every batch size, and
    put at the window's middle, so that no batch size is late by its window. The window is a fifth
    of the examples so far, so on a logarithmic axis it is as wide whenever the target is met.
    """
    curve = run.curves.get(target.metric) if target else None
    if target is None or curve is None or not len(curve.values):
        return None
    places = np.stack([curve.steps, curve.examples, curve.seconds])
    values = curve.values
    if target.metric == TRAINING_LOSS:
        places, values = smoothed(run, curve)
    return _crossing(places, values, target)


def smoothed(run: Run, curve: Curve) -> tuple[_Array, _Array]:
    """Steps, examples and seconds of each window's middle, and the mean of the values in it.

    A value is the mean since the one before it, as `Point` has it. Without a record of examples,
    steps by the batch size, epochs or seconds measure the window, the latter two without a least
    one. It has one value at least, however large the batch is.
    """
    seen, least = _measure(run, curve)
    seen = np.maximum.accumulate(seen)
    ends = np.concatenate([[0.0], seen])
    weights = np.where(np.isfinite(curve.values), np.diff(ends), 0.0)
    values = np.where(np.isfinite(curve.values), curve.values, 0.0)
    weight = np.concatenate([[0.0], np.cumsum(weights)])
    total = np.concatenate([[0.0], np.cumsum(weights * values)])
    begins = np.clip(seen - np.maximum(WINDOW_SHARE * seen, least), 0.0, ends[:-1])
    inside = weight[1:] - np.interp(begins, ends, weight)
    is_full = (seen >= least) & (inside > 0)
    means = (total[1:] - np.interp(begins, ends, total))[is_full] / inside[is_full]
    middles = ((begins + seen) / 2)[is_full]
    axes = (curve.steps, curve.examples, curve.seconds)
    places = [np.interp(middles, ends, np.concatenate([[0.0], axis])) for axis in axes]
    return np.stack(places), means


def _measure(run: Run, curve: Curve) -> tuple[_Array, float]:
    """What the window is measured in, and the least of it."""
    if np.isfinite(curve.examples).all():
        epochs, examples = curve.epochs[-1], curve.examples[-1]
        epoch = examples / epochs if epochs > 0 else WINDOW_EXAMPLES
        return curve.examples, min(WINDOW_EXAMPLES, float(epoch))
    if run.batch_size is not None and np.isfinite(curve.steps).all():
        return curve.steps * run.batch_size, WINDOW_EXAMPLES
    for axis in (curve.epochs, curve.steps, curve.seconds):
        if np.isfinite(axis).all():
            return axis, 0.0
    return np.arange(1.0, 1 + len(curve.values)), 0.0


def _crossing(places: _Array, values: _Array, target: Target) -> Reached | None:
    """`places` has a row for steps, examples and seconds; a row may be NaN."""
    is_measured = np.isfinite(values)
    places, values = places[:, is_measured], values[is_measured]
    falls = is_better(target.metric, 0.0, 1.0)
    is_good = values <= target.value if falls else values >= target.value
    if not is_good.any():
        return None
    at = int(is_good.argmax())
    after = places[:, at]
    if at == 0:
        return Reached(*after.tolist())
    before = places[:, at - 1]
    part = float((values[at - 1] - target.value) / (values[at - 1] - values[at]))
    begin, end = next(
        ((b, e) for b, e in zip(before, after, strict=True) if 0 < b < e < np.inf), (0.0, 0.0)
    )
    if begin:
        part = (begin * (end / begin) ** part - begin) / (end - begin)
    return Reached(*(before + part * (after - before)).tolist())
