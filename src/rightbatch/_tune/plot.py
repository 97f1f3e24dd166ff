"""A picture of a plan: what each batch size gives, and where it stops paying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError

if TYPE_CHECKING:
    from rightbatch._tune.plan import Plan

# Told apart by people with any colour vision (Okabe and Ito).
_THROUGHPUT, _EFFICIENCY, _GOODPUT, _LIMIT = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def plot_plan(plan: Plan) -> Any:
    """A plotly figure: throughput, statistical efficiency, and their product, each as a share of
    its largest value over the batch size; the chosen size and the largest that fits are marked.

    Raises:
        MissingExtraError: without plotly.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError("plotly", "study") from error
    sizes = [each.batch_size for each in plan.expected]
    speeds = [each.examples_per_second for each in plan.expected]
    speed_low = [each.examples_per_second_low for each in plan.expected]
    speed_high = [each.examples_per_second_high for each in plan.expected]
    useful = [1 / each.relative_time for each in plan.expected]
    top, best = max(speeds), max(useful)
    figure = go.Figure()
    figure.add_scatter(
        x=sizes,
        y=[speed / top for speed in speeds],
        error_y={
            "array": [(high - speed) / top for high, speed in zip(speed_high, speeds, strict=True)],
            "arrayminus": [
                (speed - low) / top for low, speed in zip(speed_low, speeds, strict=True)
            ],
        },
        name=f"throughput (at most {top:.4g} examples/s)",
        line={"color": _THROUGHPUT},
    )
    figure.add_scatter(
        x=sizes,
        y=[each.efficiency for each in plan.expected],
        name="statistical efficiency, 1/(1 + B/noise scale)",
        line={"color": _EFFICIENCY},
    )
    figure.add_scatter(
        x=sizes,
        y=[value / best for value in useful],
        error_y={
            "array": [
                (1 / each.low - value) / best
                for each, value in zip(plan.expected, useful, strict=True)
            ],
            "arrayminus": [
                (value - 1 / each.high) / best
                for each, value in zip(plan.expected, useful, strict=True)
            ],
        },
        name="both: progress per second",
        line={"color": _GOODPUT, "width": 4},
    )
    figure.add_vline(x=plan.batch_size, line={"color": _GOODPUT}, annotation_text="chosen")
    figure.add_vline(
        x=plan.largest.batch_size,
        line={"color": _LIMIT, "dash": "dash"},
        annotation_text="largest that was tried",
    )
    figure.update_layout(
        title=f"batch size {plan.batch_size}, noise scale: {plan.noise_scale}",
        xaxis={"title": "batch size", "type": "log", "tickvals": sizes},
        yaxis={"title": "share of the largest value", "rangemode": "tozero"},
    )
    return figure
