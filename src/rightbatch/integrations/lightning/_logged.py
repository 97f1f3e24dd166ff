"""What a LightningModule logs with `self.log`: weighted means, and metrics computed at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rightbatch._errors import UsageError
from rightbatch.integrations.lightning._metric_states import (
    MetricState,
    is_metric,
    metric_states,
    metrics_in,
    set_metric_states,
)

Entry = tuple[str, Any, float, Any]
"""A name, its value, the value's weight, and Lightning's `reduce_fx`."""


def entry(name: str, value: Any, batch_size: int | None, weight: float, how: Any) -> Entry:
    """Return what one call of `log` logs; `weight` is that of a call without `batch_size`.

    A tensor is detached, and stays on its device.

    Raises:
        UsageError: for what is neither a single number nor a metric.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().squeeze()
    elif isinstance(value, Real):
        value = float(value)
    elif not is_metric(value):
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UsageError(
            f"self.log({name!r}, ...) got {what or type(value).__name__}, and a logged value is a "
            "single number: log its mean(), or its entries with self.log_dict"
        )
    return name, value, weight if batch_size is None else float(batch_size), how


class Values:
    """The values of one kind, training or validation, since `reset`.

    Values are summed on their device, weighted with the examples of their batch.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, float]] = {}
        self._computed: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """Return whether there is a value."""
        return bool(self._sums or self._computed)

    def reset(self) -> None:
        """Forget everything."""
        self._sums, self._computed = {}, {}

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add every entry."""
        for entry in entries:
            self.add(*entry)

    def add(self, name: str, value: Any, weight: float, how: Any) -> None:
        """Add a number by Lightning's `reduce_fx`, or a torchmetrics.Metric."""
        if is_metric(value):
            self._computed[name] = value
            return
        total, count = self._sums.get(name, (0.0, 0.0))
        if how in ("mean", torch.mean):
            self._sums[name] = (total + value * weight, count + weight)
        elif how in ("sum", sum, torch.sum):
            self._sums[name] = (total + value, 1.0)
        else:  # min, max and other functions: of the result so far and the value
            two = torch.tensor([float(total), float(value)])
            function = getattr(torch, how) if isinstance(how, str) else how
            self._sums[name] = (function(two) if count else value, 1.0)

    def reduced(self) -> dict[str, tuple[Any, float]]:
        """Return the value and the weight of every name; a metric is its own value.

        A mean of values without weight (`batch_size=0`) is NaN, as in Lightning.
        """
        found = {
            name: (total / count if count else math.nan, count)
            for name, (total, count) in self._sums.items()
        }
        return found | {name: (metric, 1.0) for name, metric in self._computed.items()}

    def metrics(self) -> dict[str, float]:
        """Return the value of every name, and forget everything; metrics are reset."""
        found = {
            name: float(value.compute() if is_metric(value) else value)
            for name, (value, _) in self.reduced().items()
        }
        for metric in self._computed.values():
            metric.reset()
        self.reset()
        return found

    def state_dict(self) -> dict[str, tuple[Any, float]]:
        """Return the sums and their weights."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, tuple[Any, float]]) -> None:
        """Restore the sums of `state_dict`."""
        self._sums = dict(state)


class Logged:
    """Replaces a module's `log` and `log_dict`, and undoes what probes change in its metrics.

    A training keeps what a successful call logs. The parts of a step are kept by `end_step`, so
    that an attempt that fails logs nothing. Outside of a training nothing is kept.
    """

    def __init__(self, module: Any) -> None:
        self.training, self.validation = Values(), Values()
        self._module = module
        self._metrics: list[Any] = []
        self._step: list[Entry] = []
        self._before_step: list[MetricState] | None = None
        self._entries: list[Entry] | None = None
        self._weight, self._suffix = 1.0, ""
        module.log, module.log_dict = self.log, self.log_dict

    def start(self) -> None:
        """Begin a training: its metrics are those that the module now has."""
        self._metrics = metrics_in(self._module)

    @property
    def step(self) -> list[Entry] | None:
        """What the attempt at a step has logged so far; None before the first attempt."""
        return None if self._before_step is None else self._step

    def begin_step(self) -> None:
        """End the last step, however it ended."""
        self._before_step, self._step = None, []

    def begin_attempt(self) -> None:
        """Undo the attempt before, if there was one."""
        if self._before_step is None:
            self._before_step = metric_states(self._metrics)
        else:
            set_metric_states(self._metrics, self._before_step)
        self._step = []

    def end_step(self) -> None:
        """Keep what the last attempt logged."""
        self.training.extend(self._step)
        self.begin_step()

    @contextmanager
    def batch(
        self, keep: Values | list[Entry] | None, examples: float = 1.0, suffix: str = ""
    ) -> Iterator[None]:
        """Keep in `keep` what is logged inside; None is a probe, which changes no metric.

        `suffix` is that of the validation loader.
        """
        entries: list[Entry] = []
        outer = self._entries, self._weight, self._suffix
        self._entries, self._weight, self._suffix = entries, examples, suffix
        # A part of a validation may be repeated alone, a part of a step only with its attempt.
        is_undone = keep is None or keep is self.validation
        try:
            with self.undone(always=keep is None) if is_undone else nullcontext():
                yield
            if keep is not None:
                keep.extend(entries)
        finally:
            self._entries, self._weight, self._suffix = outer

    @contextmanager
    def undone(self, *, always: bool = False) -> Iterator[None]:
        """Undo an error, or everything: restore the metrics, and what the validation logged."""
        states, sums = metric_states(self._metrics), self.validation.state_dict()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if always or not is_done:
                set_metric_states(self._metrics, states)
                self.validation.load_state_dict(sums)

    def log(
        self,
        name: str,
        value: Any,
        *_: Any,
        batch_size: int | None = None,
        reduce_fx: Any = "mean",
        add_dataloader_idx: bool = True,
        **__: Any,
    ) -> None:
        """Log a value; the arguments are those of `LightningModule.log`."""
        if self._entries is None:
            return
        if add_dataloader_idx:
            name += self._suffix
        self._entries.append(entry(name, value, batch_size, self._weight, reduce_fx))

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, **options: Any) -> None:
        """Log several values."""
        for name, value in dictionary.items():
            self.log(name, value, **options)

    @property
    def loss(self) -> Any:
        """The batch's last value whose name ends with `loss`; None if there is none."""
        found = [
            value
            for name, value, *_ in self._entries or ()
            if name.lower().removesuffix(self._suffix).endswith("loss") and not is_metric(value)
        ]
        return found[-1] if found else None

    def state_dict(self) -> dict[str, Any]:
        """Return what the epoch has logged so far, and the metrics' states."""
        return {"sums": self.training.state_dict(), "metrics": metric_states(self._metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the epoch of `state_dict`."""
        self.training.reset()
        self.training.load_state_dict(state["sums"])
        set_metric_states(self._metrics, state["metrics"])
