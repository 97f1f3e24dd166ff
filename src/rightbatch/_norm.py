"""Normalization over the examples of a batch, which ties their number to the result."""

from __future__ import annotations

from torch import nn

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def least_examples(model: nn.Module) -> int:
    """Of a part: BatchNorm over vectors has one value per channel and example."""
    return 2 if any(isinstance(module, nn.BatchNorm1d) for module in model.modules()) else 1


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model normalizes over the examples that it is given at once."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())
