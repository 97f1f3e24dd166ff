"""Inference of a workload that does not say how: the model on a batch's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch
from rightbatch._workload.signature import accepts
from rightbatch._workload.without_gradients import needs_gradients

_LABELS = {"label", "labels", "label_ids", "target", "targets", "y"}


def forward(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch's inputs.

    These are the batch if it is a tensor or an object of one's own class, the first field of a
    tuple or list, and the items of a mapping that `model.forward` takes, without the labels.

    Raises:
        UsageError: if the model does not run on them.
    """
    left_out: list[str] = []
    try:
        if isinstance(batch, Mapping):
            function = _forward_of(model)
            inputs = {
                key: value
                for key, value in batch.items()
                if key not in _LABELS and accepts(function, key, unknown=True)
            }
            left_out = [str(key) for key in batch if key not in inputs]
            return model(**inputs)
        return model(batch[0] if isinstance(batch, list | tuple) else batch)
    except Exception as error:
        if is_out_of_memory(error) or needs_gradients(error):
            raise
        without = f" without {', '.join(left_out)}" if left_out else ""
        raise UsageError(
            f"the model does not run on the inputs of a {type(batch).__name__}{without} "
            f"({type(error).__name__}: {error}); pass predict=, a function of (model, batch), to "
            "Workload"
        ) from error


def _forward_of(model: nn.Module) -> Callable[..., Any]:
    """Return the `forward` of a model without its wrappers, which take any argument."""
    inner: Any = model
    while isinstance(inner, nn.DataParallel) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, nn.DataParallel) else inner._orig_mod
    return inner.forward  # type: ignore[no-any-return]
