"""BatchNorm: detection, values per channel, and recalibration of its running statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, to_device

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def min_examples(model: nn.Module) -> int:
    """Return the minimum examples in a part: 2 for BatchNorm1d, with one value per example."""
    return 2 if any(isinstance(module, nn.BatchNorm1d) for module in model.modules()) else 1


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the model normalizes over the examples of a micro-batch."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


class ValuesPerChannel:
    """The number of values per channel over which each BatchNorm computes mean and variance.

    It is batch size × height × width, and determines their standard error (Wu and He 2018, arXiv
    1803.08494). `least` is the smallest number seen; None if no BatchNorm ran.
    """

    def __init__(self, model: nn.Module) -> None:
        self.least: int | None = None
        norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
        self._handles = [norm.register_forward_pre_hook(self._on_forward) for norm in norms]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _on_forward(self, norm: Any, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].numel() // norm.num_features
        self.least = values if self.least is None else min(self.least, values)


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Recompute BatchNorm's running mean and variance over `batches`; return their number.

    At a small micro-batch the running statistics are a noisy average over past weights. Computed
    at the final weights over some thousand examples, in batches as large as fit, they are those of
    the data (PreciseBN; Wu and Johnson 2021, arXiv 2105.07576). Weights, gradients, modes and other
    layers do not change. A batch is the model's input: a tensor, a tuple whose first field is the
    input, or a mapping of keyword arguments.

    Raises:
        UsageError: if the model has no BatchNorm with running statistics, or `batches` is empty.
    """
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, _BATCH_NORMS) and module.track_running_stats
    ]
    if not norms:
        raise UsageError("the model has no BatchNorm with running statistics to recalibrate")
    momenta = [norm.momentum for norm in norms]
    tracked = [norm.num_batches_tracked.clone() for norm in norms]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    model.eval()  # dropout would change the layers' inputs
    count = 0
    try:
        for norm in norms:
            norm.training, norm.momentum = True, None  # None: the unweighted average over batches
            norm.reset_running_stats()
        with torch.no_grad():
            for batch in batches:
                here = to_device(batch, device)
                if isinstance(here, dict):
                    model(**here)
                else:
                    model(here[0] if isinstance(here, list | tuple) else here)
                count += 1
        if count == 0:
            raise UsageError("batches is empty: BatchNorm's statistics need at least one batch")
    except BaseException:
        for norm, (mean, variance) in zip(norms, before, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        raise
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum, number in zip(norms, momenta, tracked, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(number)
    return count
