"""One machined part seen from above: outline, holes and surface.

A part is drawn from signed distances (negative inside), so its edges are smooth at any size. The
shading of bevels and chamfers is the gradient of the same distance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

# The lamp is at the upper left, for every part and every picture.
LIGHT = (-0.64, -0.77)

_METALS = (  # RGB, 0 to 1, and probability
    ((0.63, 0.65, 0.67), 0.40),  # steel
    ((0.74, 0.75, 0.76), 0.30),  # aluminium
    ((0.53, 0.55, 0.59), 0.15),  # dark steel
    ((0.75, 0.62, 0.38), 0.15),  # brass
)
_KINDS = (("flange", 0.34), ("plate", 0.28), ("lobed", 0.20), ("washer", 0.18))
_GRAIN = 512  # side, in pixels, of the repeating tiles of surface texture


@dataclass(frozen=True)
class Hole:
    """A drilled hole, in pixels from the centre of its part."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Design:
    """The parameters of a part without defects; lengths in pixels."""

    kind: str
    radius: float  # of the enclosing circle
    scale: float  # pixels per unit; 1 for an image of 320 pixels
    angle: float
    aspect: float  # short side over long side of a plate
    bore: float  # radius of the central opening, 0 if none
    hub: float  # radius of the raised ring, 0 if none
    holes: tuple[Hole, ...]
    metal: tuple[float, float, float]
    finish: str  # "turned", "brushed" or "blasted"
    grain: tuple[float, float, float]  # x and y in the texture, and its strength


@dataclass
class Surface:
    """A part drawn at the centre of a square of pixels."""

    rgb: Floats  # (side, side, 3), defined outside the part too
    alpha: Floats  # share of each pixel that the part covers
    depth: Floats  # pixels to the nearest edge or hole, negative outside the metal
    x: Floats
    y: Floats
    scale: float


def _pick(rng: np.random.Generator, options: tuple[tuple[object, float], ...]) -> int:
    return int(rng.choice(len(options), p=[share for _, share in options]))


def design_part(rng: np.random.Generator, radius: float, scale: float) -> Design:
    """Draw a random design that fits into a circle of `radius` pixels."""
    kind = _KINDS[_pick(rng, _KINDS)][0]
    metal, _ = _METALS[_pick(rng, _METALS)]
    angle, aspect = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.72, 0.92))
    drill = max(9.3 * scale, radius * float(rng.uniform(0.15, 0.18)))
    bore = hub = 0.0
    spots: list[tuple[float, float]] = []
    finish = "blasted" if rng.random() < 0.25 else "brushed"
    if kind == "flange":
        bore = radius * float(rng.uniform(0.16, 0.27))
        hub = bore + radius * 0.13
        most = 6 if radius > 52 * scale else 5
        count = int(rng.integers(4, most + 1))
        ring = radius - drill - 5.5 * scale
        turns = angle + np.arange(count) * 2 * np.pi / count
        spots = [(ring * float(np.cos(t)), ring * float(np.sin(t))) for t in turns]
        finish = "turned" if rng.random() < 0.75 else finish
    elif kind == "plate":
        half_x, half_y = plate_half(radius, aspect)
        inset = drill + 5.5 * scale
        corners = [
            (sx * (half_x - inset), sy * (half_y - inset)) for sx in (-1, 1) for sy in (-1, 1)
        ]
        bore = half_y * 0.3 if rng.random() < 0.4 else 0.0
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        spots = [(cos * u - sin * v, sin * u + cos * v) for u, v in corners]
    elif kind == "lobed":
        count = int(rng.integers(2, 5))
        bore = radius * float(rng.uniform(0.18, 0.26))
        ring = radius - lobe_radius(radius)
        turns = angle + np.arange(count) * 2 * np.pi / count
        spots = [(ring * float(np.cos(t)), ring * float(np.sin(t))) for t in turns]
    else:
        bore = radius * float(rng.uniform(0.34, 0.48))
        finish = "turned" if rng.random() < 0.6 else finish
    shade = float(rng.uniform(0.9, 1.08))
    return Design(
        kind=kind,
        radius=radius,
        scale=scale,
        angle=angle,
        aspect=aspect,
        bore=bore,
        hub=hub,
        holes=tuple(Hole(x, y, drill) for x, y in spots),
        metal=(metal[0] * shade, metal[1] * shade, metal[2] * shade),
        finish=finish,
        grain=(
            float(rng.uniform(0, _GRAIN)),
            float(rng.uniform(0, _GRAIN)),
            float(rng.uniform(0.7, 1.3)),
        ),
    )


def plate_half(radius: float, aspect: float) -> tuple[float, float]:
    """Return half the sides of a plate whose rounded corners touch the circle of `radius`."""
    half_x = radius * 1.04 / float(np.hypot(1.0, aspect))
    return half_x, half_x * aspect


def lobe_radius(radius: float) -> float:
    """Return the radius of the rounded lobe around each hole of a lobed flange."""
    return radius * 0.31


def draw_part(design: Design, holes: tuple[Hole, ...]) -> Surface:
    """Draw the part with these holes and no defects; deterministic."""
    scale = design.scale
    half = int(np.ceil(design.radius + 4 * scale))
    line = np.arange(-half, half + 1, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    distance = np.hypot(x, y)
    outer = _outline(design, x, y, distance)
    if design.bore:
        outer = np.maximum(outer, design.bore - distance)
    # Distance to the nearest hole, computed up to `far` pixels only.
    far = 14 * scale
    drilled = np.full_like(x, far)
    inside = np.zeros_like(x)  # in a hole: 1 on the lit side, -1 on the opposite side
    for hole in holes:
        reach = int(hole.radius + far) + 2
        row, column = round(hole.y) + half, round(hole.x) + half
        near = (
            slice(max(0, row - reach), row + reach + 1),
            slice(max(0, column - reach), column + reach + 1),
        )
        away_x, away_y = x[near] - hole.x, y[near] - hole.y
        away = np.hypot(away_x, away_y) - hole.radius
        lit = -(away_x * LIGHT[0] + away_y * LIGHT[1]) / hole.radius
        inside[near] = np.where(away < 1, lit, inside[near])
        drilled[near] = np.minimum(drilled[near], away)
    edge = np.maximum(outer, -drilled)

    shade = _finish(design, x, y, distance)
    # The lamp is near, so the side of the part that faces it is brighter.
    shade += 0.07 * (x * LIGHT[0] + y * LIGHT[1]) / design.radius
    slope_y, slope_x = np.gradient(edge)
    bevel = np.clip(1 + edge / (2.6 * scale), 0, 1)
    shade += 0.42 * bevel * (slope_x * LIGHT[0] + slope_y * LIGHT[1])
    if design.hub:
        step = np.clip(1 - np.abs(distance - design.hub) / (1.8 * scale), 0, 1)
        radial = (x * LIGHT[0] + y * LIGHT[1]) / np.maximum(distance, 1)
        shade += 0.28 * step * radial + 0.04 * (distance < design.hub)
    rgb = np.asarray(design.metal, np.float32) * (1 + shade)[..., None]
    # Through a hole the belt is visible, in the part's shadow, lit on the far side.
    bottom = 0.055 + 0.10 * np.clip(inside, 0, 1) ** 2
    hollow = np.clip(0.5 - drilled, 0, 1)[..., None]
    rgb = (
        rgb * (1 - hollow) + bottom[..., None] * np.asarray((0.95, 1.0, 1.05), np.float32) * hollow
    )
    return Surface(
        rgb=cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), 0.55).astype(np.float32),
        alpha=np.clip(0.5 - outer, 0, 1).astype(np.float32),
        depth=(-edge).astype(np.float32),
        x=x,
        y=y,
        scale=scale,
    )


def _outline(design: Design, x: Floats, y: Floats, distance: Floats) -> Floats:
    if design.kind == "plate":
        half_x, half_y = plate_half(design.radius, design.aspect)
        corner = half_y * 0.2
        cos, sin = np.float32(np.cos(design.angle)), np.float32(np.sin(design.angle))
        over_x = np.abs(cos * x + sin * y) - np.float32(half_x - corner)
        over_y = np.abs(cos * y - sin * x) - np.float32(half_y - corner)
        beyond = np.hypot(np.maximum(over_x, 0), np.maximum(over_y, 0))
        return beyond + np.minimum(np.maximum(over_x, over_y), 0) - np.float32(corner)
    if design.kind == "lobed":
        count = len(design.holes)
        body = distance - np.float32(design.radius * (0.74 if count > 2 else 0.62))
        ear = np.float32(lobe_radius(design.radius))
        blend = np.float32(design.radius * 0.22)
        for hole in design.holes:
            lobe = np.hypot(x - np.float32(hole.x), y - np.float32(hole.y)) - ear
            # A smooth union, as a fillet between the body and the ear.
            mix = np.maximum(blend - np.abs(body - lobe), 0) / blend
            body = np.minimum(body, lobe) - mix * mix * blend / 4
        return body
    return distance - np.float32(design.radius)


@functools.lru_cache(maxsize=2)
def _textures(scale: float) -> tuple[Floats, Floats]:
    """Return two repeating tiles: streaks along x (brushed metal), and grain (blasted metal)."""
    rng = np.random.default_rng(20)
    raw = rng.standard_normal((_GRAIN, _GRAIN))
    fine, broad = (
        blurred_around(raw, along * scale, across * scale)
        for along, across in ((22, 0.5), (60, 1.8))
    )
    return fine + np.float32(0.4) * broad, blurred_around(raw, 0.8 * scale, 0.8 * scale)


def blurred_around(raw: Floats, along: float, across: float) -> Floats:
    """Blur a repeating tile by `along` and `across` pixels, and scale its deviation to 1.

    In the frequency domain the cost does not depend on the width, and the result is periodic.
    """
    rows, columns = np.fft.fftfreq(raw.shape[0])[:, None], np.fft.rfftfreq(raw.shape[1])[None, :]
    kept = np.exp(-2 * np.pi**2 * ((along * columns) ** 2 + (across * rows) ** 2))
    soft = np.fft.irfft2(np.fft.rfft2(raw) * kept, raw.shape)
    return np.asarray(soft / soft.std(), np.float32)


def _finish(design: Design, x: Floats, y: Floats, distance: Floats) -> Floats:
    """Return the shading, around 0, of tool marks and their sheen."""
    streaks, grain = _textures(design.scale)
    at_x, at_y, strength = design.grain
    if design.finish == "turned":
        # Circular grooves reflect light in two opposite sectors.
        turn = np.arctan2(y, x)
        texture = _look_up(streaks, turn * (_GRAIN / (2 * np.pi)) + at_x, distance + at_y)
        lamp = float(np.arctan2(LIGHT[1], LIGHT[0]))
        sheen = np.abs(np.cos(turn - lamp)) ** 6 - 0.3
        return np.asarray(0.035 * strength * texture + 0.20 * sheen, np.float32)
    cos, sin = np.float32(np.cos(design.angle)), np.float32(np.sin(design.angle))
    along, across = cos * x + sin * y, cos * y - sin * x
    if design.finish == "brushed":
        texture = _look_up(streaks, along + at_x, across + at_y)
        sheen = np.cos(across / design.radius * 2.2 + at_x)
        return np.asarray(0.045 * strength * texture + 0.07 * sheen, np.float32)
    texture = _look_up(grain, along + at_x, across + at_y)
    return np.asarray(0.04 * strength * texture, np.float32)


def _look_up(tile: Floats, x: Floats, y: Floats) -> Floats:
    return np.asarray(
        cv2.remap(
            tile,
            np.asarray(np.mod(x, _GRAIN), np.float32),
            np.asarray(np.mod(y, _GRAIN), np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        ),
        np.float32,
    )
