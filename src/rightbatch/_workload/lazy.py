"""Lazy modules: their parameters get shapes from the first batch."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy

from rightbatch._errors import UsageError
from rightbatch._workload.batch import to_device
from rightbatch._workload.item import first_items
from rightbatch._workload.modes import set_training
from rightbatch._workload.without_gradients import without_gradients
from rightbatch._workload.workload import Workload

_EXAMPLES = 2
"""Examples of the batch that gives the shapes."""


def materialize(workload: Workload) -> None:
    """Give lazy parameters their shapes, by a forward pass of two examples without gradients.

    A plain loop does so at its first batch, after the optimizer was made. Does nothing for a model
    without lazy parameters. The model is in evaluation mode in that pass, so that no statistics
    change.

    Raises:
        UsageError: if parameters have no shape afterwards, or are on the meta device.
    """
    model = workload.model
    parameters = [*model.parameters(), *model.buffers()]
    if not any(map(is_lazy, parameters)):
        if any(p.is_meta for p in parameters):
            raise UsageError(
                "the model has parameters on the meta device, which have no values; call "
                'model.to_empty(device="cpu") and initialize them in the factory'
            )
        return
    batch = workload.collate(first_items(workload.data, _EXAMPLES))
    was_training = model.training
    set_training(model, False)
    device = next((p.device for p in parameters if not is_lazy(p)), torch.device("cpu"))
    without_gradients(workload.loss, model, to_device(batch, device))
    set_training(model, was_training)
    names = [name for name, p in model.named_parameters() if is_lazy(p)]
    if names:
        raise UsageError(
            f"lazy parameters have no shape after a forward pass of {_EXAMPLES} examples: "
            f"{', '.join(names[:4])}; run a batch through the whole model in the factory"
        )
