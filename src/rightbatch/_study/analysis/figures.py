"""Plotly figures of a study: curves, the cost of the target, throughput and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rightbatch._errors import MissingExtraError
from rightbatch._study.analysis.bands import band
from rightbatch._study.analysis.by_size import Spread
from rightbatch._study.analysis.colors import palette, with_opacity
from rightbatch._study.analysis.grouping import group_runs
from rightbatch._study.analysis.summary import COSTS, Cost, Summary
from rightbatch._study.records import Axis, Run, Target

# Distinguishable with any color vision (Okabe and Ito).
_THROUGHPUT, _MEMORY, _LIMIT, _FIT = "#0072B2", "#009E73", "#D55E00", "#E69F00"
_GREY = "#808080"
_BELOW = {"orientation": "h", "y": -0.2}
_UNITS = {"steps": "steps", "examples": "examples", "seconds": "seconds of training"}


def curves_figure(
    runs: Iterable[Run], metric: str, axis: Axis = "examples", target: Target | None = None
) -> Any:
    """Plot a metric along an axis with plotly: a color for each batch size, seeds as bands.

    Raises:
        MissingExtraError: without plotly.
    """
    figure = _figure()
    groups = group_runs(runs, target)
    colors = palette(size.batch_size for size in groups.sizes)
    for size in groups.sizes:
        found = band(size.chosen, metric, axis)
        if found is None:
            continue
        name, color = str(size.batch_size), colors[size.batch_size]
        if len(size.chosen) > 1:
            figure.add_scatter(
                x=[*found.x, *found.x[::-1]],
                y=[*found.high, *found.low[::-1]],
                fill="toself",
                fillcolor=with_opacity(color, 0.2),
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        figure.add_scatter(
            x=found.x,
            y=found.middle,
            mode="lines+markers" if len(found.x) < 30 else "lines",
            name=name,
            legendgroup=name,
            line={"color": color, "width": 2},
        )
    if target is not None and target.metric == metric:
        figure.add_hline(
            y=target.value, line={"color": _GREY, "dash": "dash"}, annotation_text="target"
        )
    figure.update_layout(
        title=f"{metric} by batch size: median, minimum and maximum of the seeds",
        xaxis_title=axis,
        yaxis_title=metric,
        legend_title="batch size",
    )
    return figure


def target_figure(summary: Summary, cost: Cost = "steps") -> Any:
    """Plot steps, examples or seconds to the target over batch size with plotly.

    Steps and examples come with the fitted curve and the critical batch size's interval.

    Raises:
        MissingExtraError: without plotly.
    """
    figure = _figure()
    reached = [size for size in summary.sizes if size.to_target(cost) is not None]
    colors = palette(size.batch_size for size in summary.sizes)
    sizes = [size.batch_size for size in reached]
    figure.add_scatter(
        x=sizes,
        **_bars([size.to_target(cost) for size in reached]),
        name="median of the runs that reached it",
        mode="markers" if cost != "seconds" else "lines+markers",
        marker={"size": 10, "color": [colors[size] for size in sizes]},
        line={"color": _GREY},
        text=[f"{size.count} of {size.of} runs" for size in reached],
    )
    critical = summary.critical
    if critical is not None and cost != "seconds":
        curve = summary.to_dict()["critical"]["curve"]
        column = COSTS.index(cost)  # seconds, steps, examples; of a curve: size, steps, examples
        figure.add_scatter(
            x=[point[0] for point in curve],
            y=[point[column] for point in curve],
            name=f"S_min + E_min/B, rms log error {critical.rms_log_error:.1%}",
            mode="lines",
            line={"color": _FIT},
        )
        figure.add_vrect(
            x0=critical.low, x1=critical.high, fillcolor=_FIT, opacity=0.15, line_width=0
        )
        figure.add_vline(
            x=critical.batch_size,
            line={"color": _FIT, "dash": "dash"},
            annotation_position="top left",
            annotation={
                "text": f"critical batch size {critical}",
                "x": math.log10(critical.batch_size),  # annotations count in powers of ten
            },
        )
    figure.update_layout(
        title=f"{_UNITS[cost]} to {summary.target}" if summary.target else "no target was set",
        xaxis=_size_axis([size.batch_size for size in summary.sizes]),
        yaxis={"title": _UNITS[cost], "type": "log"},
        legend=_BELOW,
    )
    return figure


def cost_figure(summary: Summary) -> Any:
    """Plot throughput and peak memory over batch size with plotly, the memory limit, and the sizes
    that ran out of memory.

    Raises:
        MissingExtraError: without plotly.
    """
    figure = _figure()
    fast = [size for size in summary.sizes if size.examples_per_second is not None]
    figure.add_scatter(
        x=[size.batch_size for size in fast],
        **_bars([size.examples_per_second for size in fast]),
        name="examples per second",
        line={"color": _THROUGHPUT},
    )
    known = [size for size in summary.sizes if size.peak_bytes is not None]
    figure.add_scatter(
        x=[size.batch_size for size in known],
        **_bars([size.peak_bytes for size in known], 2.0**-30),
        name="peak memory",
        yaxis="y2",
        line={"color": _MEMORY, "dash": "dot"},
    )
    limited = [size for size in summary.sizes if size.limit_bytes is not None]
    if limited:
        figure.add_scatter(
            x=[size.batch_size for size in limited],
            y=[(size.limit_bytes or 0) / 2**30 for size in limited],
            name="limit",
            yaxis="y2",
            mode="lines+markers" if len(limited) == 1 else "lines",
            line={"color": _LIMIT, "dash": "dash"},
        )
    ran_out = [size for size in summary.sizes if size.statuses.get("out_of_memory")]
    if ran_out and limited:
        known_limit = max(size.limit_bytes or 0 for size in limited)
        figure.add_scatter(
            x=[size.batch_size for size in ran_out],
            y=[(size.limit_bytes or known_limit) / 2**30 for size in ran_out],
            name="out of memory",
            yaxis="y2",
            mode="markers",
            marker={"symbol": "x", "size": 12, "color": _LIMIT},
        )
    figure.update_layout(
        title="throughput and memory: median, minimum and maximum of the seeds",
        xaxis=_size_axis([size.batch_size for size in summary.sizes]),
        yaxis={"title": "examples per second", "rangemode": "tozero"},
        yaxis2={
            "title": "peak memory in GiB",
            "rangemode": "tozero",
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
        },
        legend=_BELOW,
    )
    return figure


def _figure() -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError("plotly", "study") from error
    return go.Figure()


def _size_axis(sizes: list[int]) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "title": "batch size",
        "type": "log",
        "tickvals": sizes,
        "ticktext": sizes,
    }
    if sizes:  # the automatic range of a logarithmic axis is wrong with shapes
        axis["range"] = [math.log10(min(sizes) / 1.5), math.log10(max(sizes) * 1.5)]
    return axis


def _bars(spreads: Iterable[Spread | None], scale: float = 1.0) -> dict[str, Any]:
    """Medians, with error bars to the minimum and the maximum."""
    known = [spread for spread in spreads if spread is not None]
    return {
        "y": [scale * spread.middle for spread in known],
        "error_y": {
            "array": [scale * (spread.high - spread.middle) for spread in known],
            "arrayminus": [scale * (spread.middle - spread.low) for spread in known],
        },
    }
