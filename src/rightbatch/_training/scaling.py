"""Rules that scale the learning rate with the batch size, and their sources."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer, RMSprop
from torch.optim.lr_scheduler import LRScheduler

from rightbatch._errors import UsageError

_LEAST_LEFT = 0.01
"""Smallest 1 − κ(1−β2) that is used as the new β2; below, β2 is taken to the power κ."""

_SGD = "gain of AdaScale (Johnson 2020, arXiv 2007.05105; McCandlish 2018, arXiv 1812.06162)"
_ADAM = "square root of the batch size, with beta2 and eps (Malladi 2022, arXiv 2205.10287)"
_ADAPTIVE = "square root of the batch size, as for adaptive optimizers (Malladi 2022, 2205.10287)"
_DECAYS = {"RMSprop": "alpha", "RMSpropTF": "alpha", "Adadelta": "rho"}
"""What adaptive optimizers without betas call the decay of their mean of squares."""
_WITHOUT_DECAY = {"Adagrad", "Adafactor"}
"""Adaptive optimizers that have none, or one of their own that changes from step to step."""


@dataclass(frozen=True)
class Scaling:
    """How an optimizer changes for a batch that is `batch_factor` times as large.

    `beta2` is the new value (RMSprop's `alpha`), `epsilon_factor` the factor on ε; None unless for
    optimizers that have such a decay. `rule` names the rule and its source.
    """

    batch_factor: float
    learning_rate_factor: float
    beta2: float | None
    epsilon_factor: float | None
    rule: str


def scaling(
    betas: tuple[float, float] | None, before: int, after: int, noise_scale: float
) -> Scaling:
    """Scale an optimizer from batch size `before` to `after`; `betas` are those of `betas_of`.

    SGD: the gain of AdaScale (Johnson 2020, arXiv 2007.05105), which is the law of McCandlish et
    al. (2018): the best rate is proportional to 1/(1 + φ/B), linear far below the noise scale φ and
    constant far above; it is linear if `noise_scale` is infinite. Adam, RMSprop and their variants:
    the square root (Malladi 2022, arXiv 2205.10287), with β2 and ε; see `scaled_beta2`. β1 stays.
    """
    factor = after / before
    if betas is None:
        rate = factor
        if math.isfinite(noise_scale):
            rate = (1 + noise_scale / before) / (1 + noise_scale / after)
        return Scaling(factor, rate, None, None, _SGD)
    root = math.sqrt(factor)
    if betas[1] == 1:
        return Scaling(factor, root, None, None, _ADAPTIVE)
    return Scaling(factor, root, scaled_beta2(betas[1], factor), 1 / root, _ADAM)


def betas_of(optimizer: Optimizer) -> tuple[float, float] | None:
    """Return the decays of an adaptive optimizer's means of gradients and of squares.

    Those of Adam and its variants are `betas`. Others that divide by the root of mean squares have
    (0, decay), with 1 where there is no decay. None for SGD and all that are not known.
    """
    group = optimizer.defaults | next(iter(optimizer.param_groups), {})
    if group.get("betas"):
        first, second, *_ = group["betas"]
        return float(first), float(second)
    decay = _decay_name(optimizer)
    if decay is not None:
        return 0.0, float(group[decay])
    is_adaptive = any(kind.__name__ in _WITHOUT_DECAY for kind in type(optimizer).__mro__)
    return (0.0, 1.0) if is_adaptive else None


def _decay_name(optimizer: Optimizer) -> str | None:
    names = (kind.__name__ for kind in type(optimizer).__mro__)
    return next((_DECAYS[name] for name in names if name in _DECAYS), None)


def scaled_beta2(beta2: float, batch_factor: float) -> float:
    """Multiply 1 − β2 by the factor; if that leaves no β2, take β2 to the power of the factor.

    The power is from Marek 2025, arXiv 2507.07101.
    """
    changed = 1 - batch_factor * (1 - beta2)
    return float(changed if changed >= _LEAST_LEFT else beta2**batch_factor)


def scale_optimizer(
    optimizer: Optimizer,
    batch_factor: float,
    rate_factor: float,
    scheduler: LRScheduler | None = None,
) -> None:
    """Change the learning rate, and β2 and ε if there are any, in place, by the rule of `scaling`.

    A `scheduler` and the schedulers inside it continue from the new rate.

    Raises:
        UsageError: if the rate changes and the optimizer has none, because it sets its own.
    """
    if rate_factor != 1 and learning_rate_of(optimizer) is None:
        raise UsageError(
            f"{type(optimizer).__name__} has no learning rate to multiply by {rate_factor:.3g} for "
            "another batch size, because it sets its own; give it a rate (lr=), train at a size of "
            "your own (`train --batch N`), or compare sizes with `study --rule none`"
        )
    for schedule in _schedules(scheduler):
        for name in ("base_lrs", "max_lrs"):  # cyclic schedulers have both
            if hasattr(schedule, name):
                rates = [rate * rate_factor for rate in getattr(schedule, name)]
                setattr(schedule, name, rates)
    decay = _decay_name(optimizer)
    for group in optimizer.param_groups:
        if rate_factor != 1:
            group["lr"] = group["lr"] * rate_factor
        for name in (
            "initial_lr",
            "max_lr",
            "min_lr",
        ):  # set by schedulers; OneCycleLR has all three
            if name in group:
                group[name] = group[name] * rate_factor
        if "betas" in group:
            beta1, beta2 = group["betas"]
            group["betas"] = (beta1, scaled_beta2(beta2, batch_factor))
        elif decay is not None:
            group[decay] = scaled_beta2(group[decay], batch_factor)
        if ("betas" in group or isinstance(optimizer, RMSprop)) and "eps" in group:
            group["eps"] = group["eps"] / math.sqrt(batch_factor)


def learning_rate_of(optimizer: Optimizer) -> float | None:
    """Return the learning rate of the first group; None for optimizers that set their own."""
    rate = optimizer.param_groups[0].get("lr")
    return None if rate is None else float(rate)


def _schedules(scheduler: LRScheduler | None) -> list[LRScheduler]:
    if scheduler is None:
        return []
    parts = [part for one in getattr(scheduler, "_schedulers", []) for part in _schedules(one)]
    return [scheduler, *parts] if hasattr(scheduler, "base_lrs") else parts
