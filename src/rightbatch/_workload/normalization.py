"""Normalization over the examples of a batch, which ties their number to the result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, to_device

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def least_examples(model: nn.Module) -> int:
    """Of a part: BatchNorm over vectors has one value per channel and example."""
    return 2 if any(isinstance(module, nn.BatchNorm1d) for module in model.modules()) else 1


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model normalizes over the examples that it is given at once."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


class ValuesPerChannel:
    """How many values each BatchNorm takes its mean and variance over; the least is `least`.

    That is batch size × height × width, not the batch size: what matters for how well the two are
    known (Wu and He 2018, arXiv 1803.08494). None where no BatchNorm ran.
    """

    def __init__(self, model: nn.Module) -> None:
        self.least: int | None = None
        norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
        self._handles = [norm.register_forward_pre_hook(self._seen) for norm in norms]

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()

    def _seen(self, norm: Any, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].numel() // norm.num_features
        self.least = values if self.least is None else min(self.least, values)


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Set BatchNorm's running mean and variance to those over `batches`; returns how many there
    were.

    While a model trains at a small micro-batch its running statistics are a noisy average over
    weights of the past. Taken again at the final weights over some thousand examples, in batches
    as large as fit, they are those of the data (PreciseBN; Wu and Johnson 2021, arXiv 2105.07576).
    Weights, gradients, modes and other layers are left alone. A batch is the model's input: a
    tensor, the first field of a tuple, or a mapping of its keyword arguments.

    Raises:
        UsageError: if the model has no BatchNorm with running statistics, or there is no batch.
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
    model.eval()  # dropout would add noise to what the layers see
    count = 0
    try:
        for norm in norms:
            norm.training, norm.momentum = True, None  # None: the plain average over batches
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
            raise UsageError("no batch was given to take statistics over")
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
