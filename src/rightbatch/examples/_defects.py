"""Defects of a part: scratches, dents, missing holes and stains.

Each defect is drawn onto a copy of the surface, changes too faint to see are reverted, and the box
is the bounding box of the remaining changed pixels. So the box is tight by construction, and
outside it the part has the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rightbatch.examples._metal import LIGHT, Design, Hole, Surface, draw_part

if TYPE_CHECKING:
    from rightbatch.examples._metal import Floats

# On a scale of 0 to 1; a smaller change disappears in the sensor noise.
_VISIBLE = 0.035
_TRIES = 24

Region = tuple[int, int, int, int]  # x0, y0, x1, y1 on the surface, x1 and y1 exclusive


@dataclass(frozen=True)
class Defect:
    """A defect on a part: `region` holds every pixel that it changes, and no empty margin."""

    label: str
    region: Region


def add_defects(
    rng: np.random.Generator, design: Design, clean: Surface, count: int, window: Region
) -> tuple[Floats, list[Defect]]:
    """Return the surface with up to `count` defects inside `window` that do not overlap."""
    rgb, found = clean.rgb, list[Defect]()
    drilled = design.holes
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        # Equal probabilities; a missing hole requires a part with holes.
        labels = ["scratch", "dent", "stain"] + ["missing_hole"] * bool(drilled)
        label = labels[int(rng.integers(len(labels)))]
        if label == "missing_hole":
            gone = drilled[int(rng.integers(len(drilled)))]
            rest = tuple(hole for hole in drilled if hole is not gone)
            bare = draw_part(design, rest).rgb
            around = np.hypot(clean.x - gone.x, clean.y - gone.y) < gone.radius + 4 * clean.scale
            painted = np.where(around[..., None], bare, rgb)
            painted = _layout_marks(clean, painted, gone)
        else:
            rest = drilled
            paint = {"scratch": _scratch, "dent": _dent, "stain": _stain}[label]
            metal = np.clip(clean.depth + 0.5, 0, 1)[..., None]
            painted = rgb + (paint(rng, clean, rgb) - rgb) * metal
        red, green, blue = cv2.split(cv2.absdiff(painted, rgb))
        change = cv2.max(cv2.max(red, green), blue) >= _VISIBLE
        change &= clean.alpha > 0.5
        region = _bounds(change)
        if region is None or not _fits(region, change, window, clean.scale, found):
            continue
        rgb = np.where(change[..., None], painted, rgb)
        drilled = rest
        found.append(Defect(label, region))
    return rgb, found


def _bounds(change: np.typing.NDArray[np.bool_]) -> Region | None:
    rows, columns = np.flatnonzero(change.any(axis=1)), np.flatnonzero(change.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _fits(
    region: Region,
    change: np.typing.NDArray[np.bool_],
    window: Region,
    scale: float,
    found: list[Defect],
) -> bool:
    x0, y0, x1, y1 = region
    if x0 < window[0] or y0 < window[1] or x1 > window[2] or y1 > window[3]:
        return False
    sides = sorted((x1 - x0, y1 - y0))
    if sides[0] < 8 * scale or sides[1] < 15 * scale or change.sum() < 70 * scale**2:
        return False
    apart = 2 * scale
    return all(
        x1 + apart <= other[0] or y1 + apart <= other[1]
        or x0 >= other[2] + apart or y0 >= other[3] + apart
        for other in (defect.region for defect in found)
    )  # fmt: skip


def _spot(rng: np.random.Generator, surface: Surface) -> tuple[float, float]:
    """Return a random point on the metal, away from edges and holes."""
    rows, columns = np.nonzero(surface.depth > 3 * surface.scale)
    if not len(rows):
        return 0.0, 0.0
    some = rng.integers(len(rows), size=6)
    best = some[int(np.argmax(surface.depth[rows[some], columns[some]]))]
    return float(surface.x[rows[best], columns[best]]), float(surface.y[rows[best], columns[best]])


def _turned(rng: np.random.Generator, surface: Surface) -> tuple[Floats, Floats, float]:
    """Return coordinates around a random point on the metal, and their rotation angle."""
    at_x, at_y = _spot(rng, surface)
    angle = float(rng.uniform(0, 2 * np.pi))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = surface.x - np.float32(at_x), surface.y - np.float32(at_y)
    return cos * x + sin * y, cos * y - sin * x, angle


def _scratch(rng: np.random.Generator, surface: Surface, rgb: Floats) -> Floats:
    """Draw 3 or 4 nearly parallel strokes, each a dark groove with a bright burr beside it."""
    scale = surface.scale
    along, across, _ = _turned(rng, surface)
    half = float(rng.uniform(22, 32)) * scale
    bend = float(rng.uniform(-0.25, 0.25)) / half
    shade = np.zeros_like(along)
    offset = -float(rng.uniform(4, 6)) * scale
    for stroke in range(int(rng.integers(3, 5))):
        length = half * (1.0 if stroke == 0 else float(rng.uniform(0.6, 1.0)))
        shift = (half - length) * float(rng.uniform(-1, 1))
        width = (1.7 if stroke == 0 else float(rng.uniform(1.0, 1.5))) * scale
        lean = float(rng.normal(0, 0.09))
        force = 1.0 if stroke == 0 else float(rng.uniform(0.6, 1.0))
        gap = (across - offset - lean * along - bend * along * along) / width
        reach = np.clip((1 - np.abs(along - shift) / length) * 5.0, 0, 1)
        shade += (
            force
            * reach
            * (0.70 * np.exp(-((gap - 0.9) ** 2)) - 0.62 * np.exp(-((gap + 0.9) ** 2)))
        )
        offset += float(rng.uniform(3.4, 5.2)) * scale
    return np.asarray(rgb * np.clip(1 + shade, 0.2, 1.9)[..., None], np.float32)


def _dent(rng: np.random.Generator, surface: Surface, rgb: Floats) -> Floats:
    """Draw a dent: the slope towards the lamp is dark, the opposite slope is bright."""
    scale = surface.scale
    along, across, angle = _turned(rng, surface)
    long = float(rng.uniform(12, 18)) * scale
    wide = long * float(rng.uniform(0.7, 1.0))
    u, v = along / long, across / wide
    reach = u * u + v * v
    bowl = np.exp(-1.3 * reach * reach)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    lit_u, lit_v = cos * LIGHT[0] + sin * LIGHT[1], cos * LIGHT[1] - sin * LIGHT[0]
    shade = -0.85 * bowl * (u * lit_u + v * lit_v) - 0.16 * bowl
    glint = np.exp(-(((u + 0.45 * lit_u) ** 2 + (v + 0.45 * lit_v) ** 2) / 0.06))
    return np.asarray(rgb * (1 + shade)[..., None] + 0.16 * glint[..., None], np.float32)


def _stain(rng: np.random.Generator, surface: Surface, rgb: Floats) -> Floats:
    """Draw a stain (oil, rust or dried coolant) with an irregular, darker rim."""
    along, across, _ = _turned(rng, surface)
    radius = float(rng.uniform(13, 20)) * surface.scale
    turn = np.arctan2(across, along)
    ragged = np.zeros_like(along)
    for wave in (2, 3, 5, 7):
        size = float(rng.normal(0, 0.34)) / wave
        ragged += size * np.cos(wave * turn + float(rng.uniform(0, 6.28)))
    reach = np.hypot(along / radius, across / radius * float(rng.uniform(1.0, 1.35))) - ragged
    body = np.clip((1 - reach) * 5, 0, 1)
    rim = np.exp(-(((reach - 0.88) / 0.10) ** 2))
    blotches = rng.standard_normal(surface.x.shape).astype(np.float32)
    blotches = np.asarray(cv2.GaussianBlur(blotches, (0, 0), 3 * surface.scale), np.float32)
    blotches /= blotches.std()
    cover = np.clip(body * (0.72 + 0.10 * blotches) + 0.2 * rim * body, 0, 0.95)
    tints = ((0.50, 0.30, 0.14), (0.22, 0.17, 0.12), (0.62, 0.40, 0.16), (0.20, 0.26, 0.36))
    tint = np.asarray(tints[int(rng.integers(len(tints)))], np.float32)
    light = rgb.mean(axis=2, keepdims=True)
    stained = tint * (0.45 + 0.75 * light)
    return np.asarray(rgb * (1 - cover[..., None]) + stained * cover[..., None], np.float32)


def _layout_marks(surface: Surface, rgb: Floats, hole: Hole) -> Floats:
    """Draw the layout marks of an undrilled hole: a scribed circle and a punch mark."""
    scale = surface.scale
    distance = np.hypot(surface.x - hole.x, surface.y - hole.y)
    circle = np.exp(-(((distance - hole.radius * 0.82) / (1.3 * scale)) ** 2))
    punch = np.exp(-((distance / (2.8 * scale)) ** 2))
    return np.asarray(rgb * (1 - 0.58 * circle - 0.82 * punch)[..., None], np.float32)
