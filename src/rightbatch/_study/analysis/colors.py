"""One color for each batch size, the same in notebooks and on the page."""

from __future__ import annotations

from collections.abc import Iterable

# From light to dark and from orange to blue, which people with any colour vision see as a sequence.
# Each has a contrast of 3 at least to a white and to a nearly black ground (WCAG 2.2, 1.4.11), and
# neighbours are told apart in simulated protanopia, deuteranopia and tritanopia.
_TABLE = (
    "#e4730b",
    "#e23d39",
    "#d44163",
    "#c4497d",
    "#a25699",
    "#9350bd",
    "#804ed8",
    "#5b4ff5",
)


def palette(sizes: Iterable[int]) -> dict[int, str]:
    """Colors by batch size, the smallest lightest, evenly over the sizes' order.

    >>> palette([32, 8])
    {8: '#e4730b', 32: '#5b4ff5'}
    """
    ordered = sorted(set(sizes))
    steps = max(1, len(ordered) - 1)
    return {size: _color(rank / steps) for rank, size in enumerate(ordered)}


def with_opacity(color: str, alpha: float) -> str:
    """The same color with an opacity.

    >>> with_opacity("#e4730b", 0.2)
    'rgba(228, 115, 11, 0.2)'
    """
    red, green, blue = _channels(color)
    return f"rgba({red}, {green}, {blue}, {alpha:g})"


def _color(share: float) -> str:
    place = share * (len(_TABLE) - 1)
    below = min(int(place), len(_TABLE) - 2)
    part = place - below
    ends = zip(_channels(_TABLE[below]), _channels(_TABLE[below + 1]), strict=True)
    return "#" + "".join(f"{round(low + part * (high - low)):02x}" for low, high in ends)


def _channels(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
