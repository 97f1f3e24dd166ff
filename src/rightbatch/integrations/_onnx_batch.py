"""Find out by trials which batches an ONNX model takes, whatever its file declares.

Exporters freeze the batch of their example in a Reshape, and post-processing has outputs with one
row for each detection instead of each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import UsageError
from rightbatch.integrations._onnx_input import ImageInput

_SIDE = 64  # pixels of a trial where the shape is dynamic
_FROZEN = (2, 4, 8, 16, 32, 64)  # batch sizes that are tried where 1 fails
_TOLERANCE, _FLOOR = 0.05, 0.02  # of rounding: relative, and as a share of the largest value
_TIES = 0.02  # share of an image's detections, or of whole numbers, that rounding may replace
_BOX = 4  # numbers of a detection, at least

Outputs = list[NDArray[Any]]


@dataclass(frozen=True)
class BatchAxis:
    """The batch size if it is fixed, and for each output whether its first axis is that of images.

    Outputs for which it is not belong to the one image of their batch. `reason` says why batches
    are fixed although the file declares a dynamic axis, as a clause.
    """

    size: int | None
    by_image: tuple[bool, ...]
    reason: str | None = None


def find_batch_axis(
    run: Callable[[NDArray[Any]], Outputs], image: ImageInput, outputs: Sequence[Any]
) -> BatchAxis:
    """Run the model on one and two images of noise, and on more if that fails.

    Args:
        run: the model; raises if it cannot run.
        image: its input.
        outputs: what the session declares.

    Raises:
        UsageError: if results change with the other images of a batch, whose size is fixed above 1.
    """
    trial = _Trial(run, image)
    all_rows = (True,) * len(outputs)
    if image.batch is not None and image.batch > 1:
        trial.check_independence(image.batch)
        return BatchAxis(image.batch, all_rows)
    one = trial.outputs(1)
    if one is None:
        if image.batch is None and None not in image.shape:
            for size in _FROZEN:
                if (found := trial.outputs(size)) is not None and _lengths(found) == {size}:
                    return BatchAxis(size, all_rows, f"it takes batches of {size} only")
        return BatchAxis(image.batch, all_rows)
    reason = None
    if image.batch is None:
        two = trial.outputs(2)
        if two is not None and (_lengths(one), _lengths(two)) == ({1}, {2}):
            if trial.is_independent(one, 2):
                return BatchAxis(None, all_rows)
            reason = "its results change with the other images of a batch; it is run one by one"
        elif two is not None and (size := _frozen(one, two)) > 1:
            return BatchAxis(size, all_rows, f"it takes batches of {size} only")
        else:
            reason = "it takes batches of 1 only"
            if two is not None and _lengths(two) != {1}:
                reason = "not every output has a row for each image; it is run one by one"
    blank = trial.outputs(1, blank=True) or one
    rows = zip(outputs, one, blank, strict=True)
    return BatchAxis(1, tuple(_is_row(*row) for row in rows), reason)


class _Trial:
    def __init__(self, run: Callable[[NDArray[Any]], Outputs], image: ImageInput) -> None:
        self._run, self._image = run, image

    def check_independence(self, size: int) -> None:
        """Check that the result of an image is the same beside other images."""
        one = self.outputs(size)
        if one is None or _lengths(one) != {size}:
            return
        if not self.is_independent(one, size, others=0.9):
            raise UsageError(
                f"results of this model change with the other images of a batch, which is fixed at "
                f"{size}; export it in evaluation mode, or with a batch of 1"
            )

    def is_independent(self, one: Outputs, size: int, others: float = 0.2) -> bool:
        """Whether the first result of `one` is that of the image at either end of a batch."""
        for place in (0, -1):
            found = self.outputs(size, others=others, is_last=place == -1)
            if found is None or _lengths(found) != {size}:
                return False
            # A text of an array of texts is no array.
            wanted = [np.asarray(first[0]) for first in one]
            if not _is_alike(wanted, [np.asarray(second[place]) for second in found]):
                return False
        return True

    def outputs(
        self, size: int, *, blank: bool = False, others: float = 0.2, is_last: bool = False
    ) -> Outputs | None:
        """Return the outputs for noise, None if it fails.

        The first image is always the same, or the last if `is_last`; the `others` are darker by
        this factor, so that statistics over the batch differ.
        """
        shape = (self._image.shape[0] or _SIDE, self._image.shape[1] or _SIDE)
        pixels = size * self._image.channels * shape[0] * shape[1]
        noise = np.random.default_rng(0).random(pixels, np.float32)
        noise[pixels // size :] *= others
        if is_last:
            noise = noise.reshape(size, -1)[::-1].reshape(-1)
        is_bytes = self._image.dtype == np.uint8
        memory = (noise * (255 if is_bytes else 1) * (not blank)).astype(self._image.dtype)
        try:
            found = self._run(self._image.batch_in(memory, size, shape))
        except Exception:  # of ONNX Runtime
            return None
        return found if all(isinstance(one, np.ndarray) for one in found) else None


def _lengths(outputs: Outputs) -> set[int]:
    return {len(one) if one.ndim else -1 for one in outputs}


def _frozen(one: Outputs, two: Outputs) -> int:
    """Return the first axis of outputs whose other axes grow with the batch instead; else 0."""
    lengths = _lengths(one)
    grows = all(2 * first.size == second.size for first, second in zip(one, two, strict=True))
    return max(lengths) if grows and len(lengths) == 1 and _lengths(two) == lengths else 0


def _is_row(declared: Any, *found: NDArray[Any]) -> bool:
    """Whether the first axis of an output for one image is that of the images."""
    side = declared.shape[0] if declared.shape else None
    return _lengths([*found]) == {1} and (side == 1 or not isinstance(side, int))


def _is_alike(one: Outputs, other: Outputs) -> bool:
    """Whether two results of one image are equal within rounding.

    Detections of nearly equal confidence may change places, with their rows in all outputs.
    """
    pairs = list(zip(one, other, strict=True))
    if any(first.shape != second.shape for first, second in pairs):
        return False
    changed = {first.shape[:1] for first, second in pairs if not _is_equal(first, second)}
    if len(changed) != 1:
        return not changed
    rows = [pair for pair in pairs if pair[0].shape[:1] in changed]
    has_boxes = any(first.ndim == 2 and first.shape[1] >= _BOX for first, _ in rows)
    return has_boxes and _is_reordered(rows)


def _is_equal(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether two outputs of one shape are equal within rounding, in their order."""
    if not _is_numeric(first):
        return bool(np.array_equal(first, second))
    largest = _largest(first, second)
    scale = largest.max(initial=0.0)
    if first.ndim == 2:  # rows or columns may be of different units
        scale = np.minimum(largest.max(0, initial=0.0), largest.max(1, initial=0.0, keepdims=True))
    differs = ~_is_close(first, second, scale)
    allowed = 0.0 if first.dtype.kind == "f" else _TIES * np.count_nonzero(largest)
    return bool(differs.sum() <= allowed)


def _is_reordered(pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> bool:
    """Whether outputs have the same rows in another order, the same for all outputs.

    The last of a fixed number of detections may be others, if their confidences tie.
    """
    if not all(_is_numeric(first) for first, _ in pairs):
        return False
    count = len(pairs[0][0])
    first, second = (
        np.concatenate([np.reshape(one, (count, -1)).astype(np.float64) for one in side], axis=1)
        for side in zip(*pairs, strict=True)
    )
    scale = _largest(first, second).max(0)
    moved = np.flatnonzero(~_is_close(first, second, scale).all(1))
    left, missing = moved, 0
    for row in moved:
        found = np.flatnonzero(_is_close(first[row], second[left], scale).all(1))
        left = np.delete(left, found[:1])
        missing += not found.size
        if missing > _TIES * count:
            return False
    return True


def _is_close(first: NDArray[Any], second: NDArray[Any], scale: Any) -> NDArray[np.bool_]:
    """Whether each value is equal within rounding; `scale` is the largest of its unit."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        close = np.abs(first - second) <= _TOLERANCE * _largest(first, second) + _FLOOR * scale
    is_same = (first == second) | (np.isnan(first) & np.isnan(second))
    return np.asarray(close | is_same)


def _largest(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return the larger absolute value of each pair, 0 where one is not finite."""
    larger = np.maximum(np.abs(first.astype(np.float64)), np.abs(second.astype(np.float64)))
    return np.where(np.isfinite(larger), larger, 0.0)


def _is_numeric(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "fiub"
