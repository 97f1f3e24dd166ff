"""The hooks of a LightningModule and its LightningDataModule: which ones they define, and calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._workload.batch import count_examples
from rightbatch.integrations._loaders import COMMAND

_UNCALLED = (
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_callbacks",
)
"""Hooks that change an update of Lightning's trainer, and that no other loop calls."""


def base_of(module: Any) -> type:
    """Return the class LightningModule or LightningDataModule that an object is derived from.

    Raises:
        UsageError: if it is none.
    """
    for kind in type(module).__mro__:
        if kind.__name__ in ("LightningModule", "LightningDataModule"):
            return kind
    raise UsageError(f"expected a LightningModule, got {type(module).__name__}")


def is_data_module(thing: Any) -> bool:
    """Return whether it is a LightningDataModule."""
    return any(kind.__name__ == "LightningDataModule" for kind in type(thing).__mro__)


def overrides(thing: Any, name: str) -> bool:
    """Return whether a module or data module defines a hook of its own."""
    own = vars(thing).get(name) or getattr(type(thing), name, None)
    return own is not None and own is not getattr(base_of(thing), name, None)


def refuse_uncalled(module: Any) -> None:
    """Refuse hooks that change the update.

    Raises:
        UsageError: it names them.
    """
    found = [name for name in _UNCALLED if overrides(module, name)]
    if found:
        raise UsageError(
            f"the module overrides {', '.join(found)}, which this training does not call: train "
            "with Lightning's own trainer, whose callback rightbatch.integrations.lightning."
            f"ElasticBatches survives running out of memory, {COMMAND}"
        )


def call_step(step: Callable[..., Any], batch: Any, index: int, loader: int = 0) -> Any:
    """Call a `training_step` or `validation_step` with the arguments that it has.

    They are passed by their position, as Lightning does, since their names are the user's.

    Raises:
        UsageError: if it takes `dataloader_iter`.
    """
    parameters = inspect.signature(step).parameters
    if "dataloader_iter" in parameters:
        raise UsageError(
            f"{getattr(step, '__name__', 'the step')} takes dataloader_iter and loads its own "
            f"batches; take `batch`, {COMMAND}"
        )
    kinds = [each.kind for each in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return step(batch, index, *([loader] if loader else []))
    named = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positions = named + kinds.count(inspect.Parameter.POSITIONAL_ONLY)
    return step(*(batch, index, loader)[:positions])


def examples_in(batch: Any) -> float:
    """Return the number of examples; 1 if it is unknown, as Lightning does."""
    try:
        return float(count_examples(batch))
    except UsageError:
        return 1.0
