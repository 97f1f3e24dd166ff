"""The decays of adaptive optimizers, by which the parent chooses how a rate is scaled.

As `rightbatch._training.scaling.betas_of`, which the command's Python need not have; a test
compares the two.
"""

from __future__ import annotations

from typing import Any

_DECAYS = {"RMSprop": "alpha", "RMSpropTF": "alpha", "Adadelta": "rho"}
_WITHOUT_DECAY = ("Adagrad", "Adafactor")


def betas_of(optimizer: Any, group: dict[str, Any]) -> list[float] | None:
    """Return the decays of means of gradients and of squares; None for SGD and what is unknown."""
    betas = group.get("betas")
    if betas:
        return [float(beta) for beta in betas[:2]]
    for kind in type(optimizer).__mro__:
        if kind.__name__ in _WITHOUT_DECAY:
            return [0.0, 1.0]
        if kind.__name__ in _DECAYS:
            return [0.0, float(group[_DECAYS[kind.__name__]])]
    return None
