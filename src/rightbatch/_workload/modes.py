"""The mode of a model, for training or for evaluation."""

from __future__ import annotations

from contextlib import suppress

from torch import nn


def set_training(model: nn.Module, training: bool) -> None:
    """Call `model.train(training)`; a model of `torch.export` has one mode only, and keeps it."""
    with suppress(NotImplementedError):
        model.train(training)
