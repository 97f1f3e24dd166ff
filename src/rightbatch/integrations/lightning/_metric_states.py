"""The states of a module's torchmetrics, which count every call: kept and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

MetricState = Mapping[str, Any]


def is_metric(value: Any) -> bool:
    """Return whether it is a torchmetrics.Metric, or has its methods."""
    return hasattr(value, "compute") and hasattr(value, "reset")


def metrics_in(module: nn.Module) -> list[Any]:
    """Return the metrics among a module's modules."""
    found = (each for each in module.modules() if is_metric(each))
    return [each for each in found if isinstance(getattr(each, "_defaults", None), dict)]


def metric_states(metrics: Sequence[Any]) -> list[MetricState]:
    """Return copies of the metrics' states."""
    return [
        {"_update_count": metric._update_count}
        | {name: _copied(getattr(metric, name), metric) for name in metric._defaults}
        for metric in metrics
    ]


def set_metric_states(metrics: Sequence[Any], states: Sequence[MetricState]) -> None:
    """Restore the states that `metric_states` returned."""
    for metric, state in zip(metrics, states, strict=True):
        for name, value in state.items():
            setattr(metric, name, _copied(value, metric))
        metric._computed = None


def _copied(value: Any, metric: Any) -> Any:
    """Copy tensors, which are updated in place; the elements of lists are not."""
    if isinstance(value, Tensor):
        return value.to(metric.device, copy=True)
    return list(value) if isinstance(value, list) else value
