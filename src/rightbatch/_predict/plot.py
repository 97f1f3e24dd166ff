"""A chart of a trace: memory over a step, by kind."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from rightbatch._errors import MissingExtraError
from rightbatch._predict.trace import KINDS, Trace
from rightbatch._units import format_bytes

# Distinguishable with any colour vision (Okabe and Ito).
_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#999999")


def plot_trace(trace: Trace, limit_bytes: int | None, batch_size: int) -> Any:
    """Return a plotly figure: bytes by kind after each event, the peak, the phases and the limit.

    Raises:
        MissingExtraError: if plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError("plotly", "study") from error
    figure = go.Figure()
    for kind, color in zip(KINDS, _COLORS, strict=True):
        changes = [_change(trace, event, kind) for event in trace.order]
        gib = [size / 2**30 for size in accumulate(changes)]
        figure.add_scatter(
            y=gib, name=kind, stackgroup="kinds", line={"width": 0, "shape": "hv"}, fillcolor=color
        )
    levels = list(trace.live_bytes())
    at = max(range(len(levels)), key=levels.__getitem__, default=0)
    peak = trace.peak_bytes
    figure.add_annotation(x=at, y=peak / 2**30, text=f"peak {format_bytes(peak)}", showarrow=True)
    for index, name in trace.phases:
        if name != "zero gradients":
            figure.add_vline(x=index, line={"width": 1, "dash": "dot"}, annotation_text=name)
    if limit_bytes is not None:
        text = f"limit {format_bytes(limit_bytes)}"
        figure.add_hline(y=limit_bytes / 2**30, line={"color": "#D55E00"}, annotation_text=text)
    figure.update_layout(
        title=f"memory of two steps and an evaluation at batch size {batch_size}",
        xaxis_title="allocations and frees, in order",
        yaxis_title="GiB of tensors",
        hovermode="x unified",
    )
    return figure


def _change(trace: Trace, event: int, kind: str) -> int:
    index = event if event >= 0 else ~event
    if trace.kinds[index] != kind:
        return 0
    return trace.sizes[index] if event >= 0 else -trace.sizes[index]
