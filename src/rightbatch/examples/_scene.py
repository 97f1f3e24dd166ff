"""A conveyor belt with parts under a camera: layout of the parts and rendering.

Single images and videos show the same scene. In a video the belt moves by an integer number of
pixels between frames, so a part keeps its pixels and only lighting and sensor noise change.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rightbatch.examples._defects import Defect, add_defects
from rightbatch.examples._labels import Box
from rightbatch.examples._metal import blurred_around, design_part, draw_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from rightbatch.examples._metal import Floats

    Frame = npt.NDArray[np.uint8]

DEFECTIVE = 0.35  # share of the parts that have a defect
_TWO_DEFECTS = 0.5  # share of those that have a second defect
_PARTS = (0.08, 0.14, 0.20, 0.20, 0.19, 0.19)  # probability of 1, 2, ... parts in an image
_STEP = 4  # units that the belt moves between two frames
_NOISE_MARGIN = 160  # pixels by which the array of noise is larger than the image
_TILE = 640  # side, in units, of the belt's repeating texture


@dataclass(frozen=True)
class Part:
    """A rendered part on the belt; `x` and `y` are the corner of its square of pixels."""

    x: int
    y: int
    clean: Floats
    rgb: Floats
    alpha: Floats
    shadow: Floats
    defects: tuple[Defect, ...]


@dataclass(frozen=True)
class Appearance:
    """Properties of an image besides the parts: belt, lighting and camera."""

    belt: tuple[float, float, float]  # RGB, 0 to 1
    offset: tuple[int, int]  # into the texture of the belt
    lamp: tuple[float, float]  # the brightest point, 0 to 1 across the image
    falloff: float
    exposure: float
    white: tuple[float, float, float]
    noise: float


def scale_of(width: int, height: int) -> float:
    """Return the pixels per unit, so that everything on the belt scales with the image."""
    return min(width, height) / 320


def choose_appearance(rng: np.random.Generator) -> Appearance:
    """Draw a random belt, lighting and camera."""
    belts = ((0.20, 0.24, 0.22), (0.16, 0.17, 0.20), (0.16, 0.27, 0.24), (0.24, 0.24, 0.24))
    warm = float(rng.normal(0, 0.02))
    return Appearance(
        belt=belts[int(rng.integers(len(belts)))],
        offset=(int(rng.integers(1 << 20)), int(rng.integers(1 << 20))),
        lamp=(float(rng.uniform(0.25, 0.6)), float(rng.uniform(0.2, 0.5))),
        falloff=float(rng.uniform(0.25, 0.5)),
        exposure=float(rng.uniform(0.92, 1.12)),
        white=(1 + warm, 1.0, 1 - warm),
        noise=float(rng.uniform(0.008, 0.018)),
    )


def render_image(
    rng: np.random.Generator, size: int, *, with_defects: bool = True
) -> tuple[Frame, list[Box]]:
    """Render one image (size, size, 3) and its boxes; without defects, other pixels are equal."""
    scale = scale_of(size, size)
    appearance = choose_appearance(rng)
    noise_seed = int(rng.integers(1 << 62))
    wanted = int(rng.choice(len(_PARTS), p=_PARTS) + 1)
    spots = _scatter(rng, size, size, wanted, scale, overhang=0.25)
    parts = [_place_part(rng, *spot, scale, (0, 0, size, size)) for spot in spots]
    noise = np.random.default_rng(noise_seed)
    return _render(noise, appearance, parts, (size, size), 0, with_defects=with_defects)


def render_video(
    seed: int, count: int, width: int, height: int, *, with_defects: bool = True
) -> Iterator[tuple[Frame, list[Box]]]:
    """Render `count` frames (height, width, 3) of a belt that moves to the right."""
    scale = scale_of(width, height)
    appearance = choose_appearance(np.random.default_rng([seed, 1]))
    step = step_of(width, height)
    # The belt consists of sections; each section's parts have a seed of their own.
    length = round(340 * scale)
    sections: dict[int, list[Part]] = {}
    for index in range(count):
        moved = index * step
        # Section k starts at -k * length on the belt. Keep the visible sections, and one more on
        # either side, whose shadows can be visible.
        visible = range((moved - width) // length, moved // length + 3)
        sections = {k: sections.get(k) or _section(seed, k, length, height, scale) for k in visible}
        parts = [part for section in sections.values() for part in section]
        noise = np.random.default_rng([seed, 2, index])
        yield _render(noise, appearance, parts, (width, height), moved, with_defects=with_defects)


def step_of(width: int, height: int) -> int:
    """Return the pixels that the belt moves between two frames."""
    return max(1, round(_STEP * scale_of(width, height)))


def _section(seed: int, number: int, length: int, height: int, scale: float) -> list[Part]:
    # A seed must not be negative; section numbers can be.
    rng = np.random.default_rng([seed, 3, number & 0xFFFFFFFF])
    spots = _scatter(rng, length, height, int(rng.integers(2, 6)), scale, overhang=0.0)
    everywhere = (-(1 << 30), -(1 << 30), 1 << 30, 1 << 30)
    return [
        _place_part(rng, x - number * length, y, radius, scale, everywhere)
        for x, y, radius in spots
    ]


def _scatter(
    rng: np.random.Generator, width: int, height: int, count: int, scale: float, overhang: float
) -> list[tuple[int, int, float]]:
    """Return centres and radii of 1 to `count` parts that do not overlap, as (x, y, radius).

    `overhang` is the share of the radius by which a part may extend beyond the image.
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


def _place_part(
    rng: np.random.Generator,
    x: int,
    y: int,
    radius: float,
    scale: float,
    window: tuple[int, int, int, int],
) -> Part:
    """Draw a random part, possibly with defects, with its centre at `x`, `y`."""
    design = design_part(rng, radius, scale)
    clean = draw_part(design, design.holes)
    half = clean.x.shape[0] // 2
    left, top = x - half, y - half
    rgb, defects = clean.rgb, list[Defect]()
    if rng.random() < DEFECTIVE:
        count = 2 if rng.random() < _TWO_DEFECTS else 1
        x0, y0, x1, y1 = window
        on_part = (x0 - left, y0 - top, x1 - left, y1 - top)
        rgb, defects = add_defects(rng, design, clean, count, on_part)
    return Part(left, top, clean.rgb, rgb, clean.alpha, _shadow(clean.alpha, scale), tuple(defects))


def _shadow(alpha: Floats, scale: float) -> Floats:
    """Return the share of light the part blocks; `shadow_reach` pixels larger on every side."""
    reach = shadow_reach(scale)
    wide = cv2.copyMakeBorder(alpha, reach, reach, reach, reach, cv2.BORDER_CONSTANT)
    shift = np.asarray([[1, 0, 3.6 * scale], [0, 1, 4.4 * scale]], np.float32)
    cast = cv2.warpAffine(wide, shift, wide.shape[::-1])
    cast = cv2.GaussianBlur(cast, (0, 0), 3.2 * scale)
    contact = cv2.GaussianBlur(wide, (0, 0), 1.6 * scale)
    return np.asarray(np.clip(0.62 * cast + 0.3 * contact, 0, 0.85), np.float32)


def shadow_reach(scale: float) -> int:
    """Return the pixels by which a shadow extends beyond its part."""
    return int(np.ceil(14 * scale))


@functools.lru_cache(maxsize=2)
def _belt(scale: float) -> Floats:
    """Return the belt's texture, around 1: a weave with wear along its direction, and dirt."""
    side = round(_TILE * scale)
    rng = np.random.default_rng(21)
    line = np.arange(side, dtype=np.float32)
    # An integer number of periods per tile, so that the weave has no seam.
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


def _render(
    rng: np.random.Generator,
    appearance: Appearance,
    parts: Iterable[Part],
    size: tuple[int, int],
    moved: int,
    *,
    with_defects: bool,
) -> tuple[Frame, list[Box]]:
    """Render the image and its boxes when the belt has moved by `moved` pixels."""
    width, height = size
    scale = scale_of(width, height)
    tile = _belt(scale)
    rows = (np.arange(height) + appearance.offset[1]) % tile.shape[0]
    columns = (np.arange(width) + appearance.offset[0] - moved) % tile.shape[1]
    light = tile[rows[:, None], columns[None, :]]
    visible = [part for part in parts if -part.alpha.shape[1] * 2 < part.x + moved < width * 2]
    reach = shadow_reach(scale)
    for part in visible:
        target, source = _overlap(part.x + moved - reach, part.y - reach, part.shadow.shape, size)
        light[target] *= 1 - part.shadow[source]
    image = light[..., None] * np.asarray(appearance.belt, np.float32)
    boxes: list[Box] = []
    for part in visible:
        target, source = _overlap(part.x + moved, part.y, part.alpha.shape, size)
        alpha = part.alpha[source][..., None]
        rgb = part.rgb if with_defects else part.clean
        image[target] = image[target] * (1 - alpha) + rgb[source] * alpha
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
    return _expose(rng, appearance, image), boxes


def _overlap(
    x: int, y: int, shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the overlap of a square at `x`, `y` and the image, as slices of each."""
    x0, y0 = min(max(x, 0), size[0]), min(max(y, 0), size[1])
    x1, y1 = max(x0, min(x + shape[1], size[0])), max(y0, min(y + shape[0], size[1]))
    in_square = slice(min(y0 - y, shape[0]), y1 - y), slice(min(x0 - x, shape[1]), x1 - x)
    return (slice(y0, y1), slice(x0, x1)), in_square


def _expose(rng: np.random.Generator, appearance: Appearance, image: Floats) -> Frame:
    """Apply the lamp's falloff, white balance and sensor noise; convert to 8 bits."""
    height, width = image.shape[:2]
    x = (np.arange(width, dtype=np.float32) / width - appearance.lamp[0]) ** 2
    y = (np.arange(height, dtype=np.float32) / height - appearance.lamp[1]) ** 2
    light = appearance.exposure * (1 - appearance.falloff * (x[None, :] + y[:, None]))
    image *= light[..., None]
    image *= np.asarray(appearance.white, np.float32)
    # Shot noise: the standard deviation grows with the square root of the brightness.
    deviation = cv2.sqrt(np.maximum(image, 0) + np.float32(0.15))
    deviation *= appearance.noise
    deviation *= _normal_noise(rng, height, width)
    image += deviation
    image *= 255
    image += 0.5
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _normal_noise(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return a random window of a noise array that is drawn once, which is much faster."""
    noise = _noise_array(height, width)
    y, x = int(rng.integers(_NOISE_MARGIN)), int(rng.integers(_NOISE_MARGIN))
    return noise[y : y + height, x : x + width]


@functools.lru_cache(maxsize=2)
def _noise_array(height: int, width: int) -> Floats:
    shape = (height + _NOISE_MARGIN, width + _NOISE_MARGIN, 3)
    return np.random.default_rng(22).standard_normal(shape, dtype=np.float32)
