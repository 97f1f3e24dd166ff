"""The figure of a plan: throughput, efficiency and their product for each batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError

if TYPE_CHECKING:
    from rightbatch._noise import NoiseEstimate
    from rightbatch._tune.decision import Expected

# Distinguishable with any colour vision (Okabe and Ito).
_THROUGHPUT, _EFFICIENCY, _GOODPUT, _LIMIT = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def plot_plan(
    expected: Sequence[Expected], *, chosen: int, largest: int, noise_scale: NoiseEstimate
) -> Any:
    """Draw throughput, statistical efficiency and their product over the batch size, with plotly.

    Each is a share of its largest value; the chosen size and the largest tried are marked.

    Raises:
        MissingExtraError: without plotly.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError("plotly", "study") from error
    sizes = [each.batch_size for each in expected]
    speeds = [each.examples_per_second for each in expected]
    speed_low = [each.examples_per_second_low for each in expected]
    speed_high = [each.examples_per_second_high for each in expected]
    useful = [1 / each.relative_time for each in expected]
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
        y=[each.efficiency for each in expected],
        name="statistical efficiency, 1/(1 + B/noise scale)",
        line={"color": _EFFICIENCY},
    )
    figure.add_scatter(
        x=sizes,
        y=[value / best for value in useful],
        error_y={
            "array": [
                (1 / each.low - value) / best for each, value in zip(expected, useful, strict=True)
            ],
            "arrayminus": [
                (value - 1 / each.high) / best for each, value in zip(expected, useful, strict=True)
            ],
        },
        name="both: progress per second",
        line={"color": _GOODPUT, "width": 4},
    )
    for size, text, line in (
        (chosen, "chosen", {"color": _GOODPUT}),
        (largest, "largest tried", {"color": _LIMIT, "dash": "dash"}),
    ):
        figure.add_vline(x=size, line=line)
        # On a log axis an annotation is placed by the logarithm, a line by the value.
        figure.add_annotation(x=math.log10(size), y=1, yref="paper", text=text, showarrow=False)
    figure.update_layout(
        title=f"batch size {chosen}, noise scale: {noise_scale}",
        xaxis={"title": "batch size", "type": "log", "tickvals": sizes},
        yaxis={"title": "share of the largest value", "rangemode": "tozero"},
    )
    return figure
