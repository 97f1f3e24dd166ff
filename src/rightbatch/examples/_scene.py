"""A belt that carries parts under a camera: where they lie, and what the camera sees.

Stills and films are the same scene. In a still the belt stands; in a film it moves by a whole
number of pixels between frames, so every part keeps its pixels from frame to frame and only the
light over it and the noise of the sensor change.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rightbatch.examples._defects import Defect, add_defects
from rightbatch.examples._metal import blurred_around, design_part, draw_part
from rightbatch.examples.parts import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from rightbatch.examples._metal import Floats

    Frame = npt.NDArray[np.uint8]

DEFECTIVE = 0.35  # share of the parts that have a defect
_TWICE = 0.5  # share of those that have a second one
_PARTS = (0.08, 0.14, 0.20, 0.20, 0.19, 0.19)  # how often a still has 1, 2, ... parts
_STEP = 4  # units that the belt moves between two frames
_SLACK = 160  # pixels by which the sheet of noise is larger than the picture
_TILE = 640  # side, in units, of the texture of the belt, which repeats


@dataclass(frozen=True)
class Part:
    """A part that lies on the belt, drawn; `x` and `y` is the corner of its square of pixels."""

    x: int
    y: int
    clean: Floats
    rgb: Floats
    alpha: Floats
    shadow: Floats
    defects: tuple[Defect, ...]


@dataclass(frozen=True)
class Look:
    """What differs from one picture to the next, though nothing on the belt does."""

    belt: tuple[float, float, float]
    offset: tuple[int, int]  # into the texture of the belt
    lamp: tuple[float, float]  # the brightest spot, 0..1 across the picture
    falloff: float
    exposure: float
    white: tuple[float, float, float]
    noise: float


def scale_of(width: int, height: int) -> float:
    """Pixels per unit: everything on the belt grows with the picture."""
    return min(width, height) / 320


def choose_look(rng: np.random.Generator) -> Look:
    belts = ((0.20, 0.24, 0.22), (0.16, 0.17, 0.20), (0.16, 0.27, 0.24), (0.24, 0.24, 0.24))
    warm = float(rng.normal(0, 0.02))
    return Look(
        belt=belts[int(rng.integers(len(belts)))],
        offset=(int(rng.integers(1 << 20)), int(rng.integers(1 << 20))),
        lamp=(float(rng.uniform(0.25, 0.6)), float(rng.uniform(0.2, 0.5))),
        falloff=float(rng.uniform(0.25, 0.5)),
        exposure=float(rng.uniform(0.92, 1.12)),
        white=(1 + warm, 1.0, 1 - warm),
        noise=float(rng.uniform(0.008, 0.018)),
    )


def still(
    rng: np.random.Generator, size: int, *, with_defects: bool = True
) -> tuple[Frame, list[Box]]:
    """One picture of a standing belt. Without defects, every other pixel is the same."""
    scale = scale_of(size, size)
    look = choose_look(rng)
    noise_seed = int(rng.integers(1 << 62))
    wanted = int(rng.choice(len(_PARTS), p=_PARTS) + 1)
    spots = _scatter(rng, size, size, wanted, scale, overhang=0.25)
    parts = [_lay(rng, *spot, scale, (0, 0, size, size)) for spot in spots]
    noise = np.random.default_rng(noise_seed)
    return _photograph(noise, look, parts, (size, size), 0, with_defects=with_defects)


def film(
    seed: int, count: int, width: int, height: int, *, with_defects: bool = True
) -> Iterator[tuple[Frame, list[Box]]]:
    """`count` pictures of a belt that moves to the right."""
    scale = scale_of(width, height)
    look = choose_look(np.random.default_rng([seed, 1]))
    step = step_of(width, height)
    # Parts come in lots, one lot per stretch of belt, each from a seed of its own.
    stretch = round(340 * scale)
    lots: dict[int, list[Part]] = {}
    for index in range(count):
        moved = index * step
        # Lot k lies on the belt from -k * stretch on. Wanted are those in sight, and one more on
        # either side for the shadows that reach in.
        wanted = range((moved - width) // stretch, moved // stretch + 3)
        lots = {k: lots.get(k) or _lot(seed, k, stretch, height, scale) for k in wanted}
        parts = [part for lot in lots.values() for part in lot]
        noise = np.random.default_rng([seed, 2, index])
        yield _photograph(noise, look, parts, (width, height), moved, with_defects=with_defects)


def step_of(width: int, height: int) -> int:
    """Pixels that the belt moves between two frames."""
    return max(1, round(_STEP * scale_of(width, height)))


def _lot(seed: int, number: int, stretch: int, height: int, scale: float) -> list[Part]:
    # Seeds are not negative, lots left of the first one are.
    rng = np.random.default_rng([seed, 3, number & 0xFFFFFFFF])
    spots = _scatter(rng, stretch, height, int(rng.integers(2, 6)), scale, overhang=0.0)
    everywhere = (-(1 << 30), -(1 << 30), 1 << 30, 1 << 30)
    return [_lay(rng, x - number * stretch, y, radius, scale, everywhere) for x, y, radius in spots]


def _scatter(
    rng: np.random.Generator, width: int, height: int, count: int, scale: float, overhang: float
) -> list[tuple[int, int, float]]:
    """Places and radii of up to `count` parts, at least one, that keep clear of one another.

    `overhang` is the share of the radius by which a part may stick out of the picture.
    """
    largest = {1: 96, 2: 84, 3: 72, 4: 64, 5: 58}.get(count, 54)
    found: list[tuple[int, int, float]] = []
    for _ in range(60 * count):
        if len(found) == count:
            break
        radius = float(rng.uniform(largest * 0.82, largest)) * scale
        radius = min(radius, 0.44 * min(width, height))
        edge = radius * (1 - overhang) + (0 if overhang else 8 * scale)
        edge = min(edge, 0.5 * min(width, height))
        x, y = round(rng.uniform(edge, width - edge)), round(rng.uniform(edge, height - edge))
        gap = 9 * scale
        if all(math.hypot(x - a, y - b) > radius + r + gap for a, b, r in found):
            found.append((x, y, radius))
    return found


def _lay(
    rng: np.random.Generator,
    x: int,
    y: int,
    radius: float,
    scale: float,
    window: tuple[int, int, int, int],
) -> Part:
    """Makes a part, spoils it perhaps, and lays it with its centre at `x`, `y`."""
    design = design_part(rng, radius, scale)
    clean = draw_part(design, design.holes)
    half = clean.x.shape[0] // 2
    left, top = x - half, y - half
    rgb, defects = clean.rgb, list[Defect]()
    if rng.random() < DEFECTIVE:
        count = 2 if rng.random() < _TWICE else 1
        x0, y0, x1, y1 = window
        here = (x0 - left, y0 - top, x1 - left, y1 - top)
        rgb, defects = add_defects(rng, design, clean, count, here)
    return Part(left, top, clean.rgb, rgb, clean.alpha, _shadow(clean.alpha, scale), tuple(defects))


def _shadow(alpha: Floats, scale: float) -> Floats:
    """How much light the part takes from the belt; its square is `shadow_reach` wider all round."""
    reach = shadow_reach(scale)
    wide = cv2.copyMakeBorder(alpha, reach, reach, reach, reach, cv2.BORDER_CONSTANT)
    shift = np.asarray([[1, 0, 3.6 * scale], [0, 1, 4.4 * scale]], np.float32)
    cast = cv2.warpAffine(wide, shift, wide.shape[::-1])
    cast = cv2.GaussianBlur(cast, (0, 0), 3.2 * scale)
    contact = cv2.GaussianBlur(wide, (0, 0), 1.6 * scale)
    return np.asarray(np.clip(0.62 * cast + 0.3 * contact, 0, 0.85), np.float32)


def shadow_reach(scale: float) -> int:
    return int(np.ceil(14 * scale))


@functools.lru_cache(maxsize=2)
def _belt(scale: float) -> Floats:
    """The texture of the belt, around 1: a weave, worn along the way it runs, with some dirt."""
    side = round(_TILE * scale)
    rng = np.random.default_rng(21)
    line = np.arange(side, dtype=np.float32)
    # Whole periods per tile, so that the weave has no seam where the tile repeats.
    waves = round(_TILE / 5)
    across = np.sin(line * np.float32(2 * np.pi * waves / side))
    weave = 0.08 * (across[:, None] * across[None, :])
    raw = rng.standard_normal((side, side))

    def blurred(along: float, over: float) -> Floats:
        return blurred_around(raw, along * scale, over * scale)

    worn, dirt, fine = blurred(50, 1.2), blurred(14, 14), blurred(0.6, 0.6)
    specks = np.clip(blurred(1.3, 1.3) - 3.1, 0, 1)
    texture = 1 + weave + 0.035 * worn + 0.06 * dirt + 0.05 * fine + 0.5 * specks
    return np.asarray(texture, np.float32)


def _photograph(
    rng: np.random.Generator,
    look: Look,
    parts: Iterable[Part],
    size: tuple[int, int],
    moved: int,
    *,
    with_defects: bool,
) -> tuple[Frame, list[Box]]:
    """What the camera sees once the belt has moved by `moved` pixels."""
    width, height = size
    scale = scale_of(width, height)
    tile = _belt(scale)
    rows = (np.arange(height) + look.offset[1]) % tile.shape[0]
    columns = (np.arange(width) + look.offset[0] - moved) % tile.shape[1]
    light = tile[rows[:, None], columns[None, :]]
    seen = [part for part in parts if -part.alpha.shape[1] * 2 < part.x + moved < width * 2]
    reach = shadow_reach(scale)
    for part in seen:
        here, there = _overlap(part.x + moved - reach, part.y - reach, part.shadow.shape, size)
        light[here] *= 1 - part.shadow[there]
    picture = light[..., None] * np.asarray(look.belt, np.float32)
    boxes: list[Box] = []
    for part in seen:
        here, there = _overlap(part.x + moved, part.y, part.alpha.shape, size)
        cover = part.alpha[there][..., None]
        rgb = part.rgb if with_defects else part.clean
        picture[here] = picture[here] * (1 - cover) + rgb[there] * cover
        for defect in part.defects if with_defects else ():
            x0, y0, x1, y1 = defect.region
            box = (
                max(0, part.x + moved + x0),
                max(0, part.y + y0),
                min(width, part.x + moved + x1),
                min(height, part.y + y1),
            )
            if box[0] < box[2] and box[1] < box[3]:
                boxes.append(Box(defect.label, *box))
    return _expose(rng, look, picture), boxes


def _overlap(
    x: int, y: int, shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a square of pixels at `x`, `y` meets the picture: in the picture, in the square."""
    x0, y0 = min(max(x, 0), size[0]), min(max(y, 0), size[1])
    x1, y1 = max(x0, min(x + shape[1], size[0])), max(y0, min(y + shape[0], size[1]))
    there = slice(min(y0 - y, shape[0]), y1 - y), slice(min(x0 - x, shape[1]), x1 - x)
    return (slice(y0, y1), slice(x0, x1)), there


def _expose(rng: np.random.Generator, look: Look, picture: Floats) -> Frame:
    """Light that falls off from the lamp's spot, then the sensor: noise, and eight bits."""
    height, width = picture.shape[:2]
    x = (np.arange(width, dtype=np.float32) / width - look.lamp[0]) ** 2
    y = (np.arange(height, dtype=np.float32) / height - look.lamp[1]) ** 2
    light = look.exposure * (1 - look.falloff * (x[None, :] + y[:, None]))
    picture *= light[..., None]
    picture *= np.asarray(look.white, np.float32)
    # Brighter pixels are noisier: light comes in grains.
    spread = cv2.sqrt(np.maximum(picture, 0) + np.float32(0.15))
    spread *= look.noise
    spread *= _grains(rng, height, width)
    picture += spread
    picture *= 255
    picture += 0.5
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _grains(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Normal noise: a window, somewhere, of a sheet that is drawn once, which is much faster."""
    sheet = _sheet(height, width)
    y, x = int(rng.integers(_SLACK)), int(rng.integers(_SLACK))
    return sheet[y : y + height, x : x + width]


@functools.lru_cache(maxsize=2)
def _sheet(height: int, width: int) -> Floats:
    shape = (height + _SLACK, width + _SLACK, 3)
    return np.random.default_rng(22).standard_normal(shape, dtype=np.float32)
