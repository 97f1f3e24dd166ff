"""When a run reached a target: steps, examples and seconds, between two measurements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rightbatch._study.analysis.cache import once_per_run
from rightbatch._study.records import Crossing, Curve, Run, Target
from rightbatch._training.targets import is_better

TRAINING_LOSS = "loss"
WINDOW_SHARE = 0.2
"""Share of the examples seen so far over which the training loss is averaged."""
WINDOW_EXAMPLES = 512
"""The smallest window, or an epoch if that is less: few examples reach any loss by chance."""

_Array = NDArray[np.float64]


@once_per_run
def find_crossing(run: Run, target: Target | None) -> Crossing | None:
    """When the metric first reached the target; None if it did not, or there is no target.

    Between that measurement and the one before, the metric is taken to be linear in the logarithm
    of the steps, as learning curves roughly are, at constant speed. A first measurement that
    reaches the target is not interpolated.

    The training loss is noisy, the more so the fewer examples a step has. It is averaged over a
    window of examples, not of steps, so that a chance dip is equally likely at every batch size,
    and assigned to the window's middle, so that no batch size is delayed by its window. The window
    is a fifth of the examples so far, which has the same width everywhere on a logarithmic axis.
    """
    curve = run.curves.get(target.metric) if target else None
    if target is None or curve is None or not len(curve.values):
        return None
    places = np.stack([curve.steps, curve.examples, curve.seconds])
    values = curve.values
    if target.metric == TRAINING_LOSS:
        places, values = smooth(run, curve)
    return _crossing(places, values, target)


def smooth(run: Run, curve: Curve) -> tuple[_Array, _Array]:
    """Steps, examples and seconds of each window's middle, and the mean of the values in it.

    A value is the mean since the one before it, as in `Point`. If examples were not recorded, the
    window is measured in steps times the batch size, in epochs or in seconds, the latter two
    without a minimum. It has at least one value, however large the batch is.
    """
    seen, least = _window_axis(run, curve)
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


def _window_axis(run: Run, curve: Curve) -> tuple[_Array, float]:
    """The axis in which the window is measured, and its smallest width."""
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


def _crossing(places: _Array, values: _Array, target: Target) -> Crossing | None:
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
        return Crossing(*after.tolist())
    before = places[:, at - 1]
    part = float((values[at - 1] - target.value) / (values[at - 1] - values[at]))
    begin, end = next(
        ((b, e) for b, e in zip(before, after, strict=True) if 0 < b < e < np.inf), (0.0, 0.0)
    )
    if begin:
        part = (begin * (end / begin) ** part - begin) / (end - begin)
    return Crossing(*(before + part * (after - before)).tolist())
