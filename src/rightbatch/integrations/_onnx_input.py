"""The image input of an ONNX model: its layout, dtype, channels and fixed axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import UsageError
from rightbatch._serve.sources.decoding import MAX_PIXELS

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_CHANNELS = (3, 1)  # colour, gray
WAY_ROUND = "to serve it, write a function that runs it with onnxruntime, and pass file.py:FUNCTION"


@dataclass(frozen=True)
class ImageInput:
    """The only input of a model: N×C×H×W or N×H×W×C; `batch`, H and W are None if dynamic."""

    name: str
    dtype: np.dtype[Any]
    batch: int | None
    channels: int
    shape: tuple[int | None, int | None]
    is_channels_last: bool

    @classmethod
    def of(cls, model: str, inputs: Sequence[Any]) -> ImageInput:
        """Read the inputs of a session.

        Raises:
            UsageError: if they are not one input of pictures with 1 or 3 channels.
        """
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise UsageError(
                f"{model} has {len(inputs)} inputs ({names}); expected one image input; {WAY_ROUND}"
            )
        [one] = inputs
        sides = [side if isinstance(side, int) and side > 0 else None for side in one.shape]
        for channels in _CHANNELS if len(sides) == 4 and one.type in _TYPES else ():
            if channels in (sides[1], sides[3]):
                is_last = sides[1] != channels
                height, width = sides[1:3] if is_last else sides[2:4]
                if 0 in one.shape or (height or 1) * (width or 1) > MAX_PIXELS:
                    raise UsageError(
                        f"{model} has an input of {one.shape}; expected a batch of at least 1 and "
                        f"images of 1 to {MAX_PIXELS} pixels"
                    )
                return cls(
                    one.name,
                    np.dtype(_TYPES[one.type]),
                    sides[0],
                    channels,
                    (height, width),
                    is_last,
                )
        raise UsageError(
            f"{model} has an input {one.type} of {one.shape}; expected N×3×H×W, N×1×H×W (gray) or "
            f"N×H×W×3, N×H×W×1 of {', '.join(_TYPES)}; {WAY_ROUND}"
        )

    def batch_in(self, memory: NDArray[Any], size: int, shape: tuple[int, int]) -> NDArray[Any]:
        """Return the start of `memory` as a batch of `size` images of (height, width)."""
        sides = (*shape, self.channels) if self.is_channels_last else (self.channels, *shape)
        return memory[: size * self.channels * shape[0] * shape[1]].reshape(size, *sides)

    def as_NHWC(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a batch with its channels last."""
        return batch if self.is_channels_last else batch.transpose(0, 2, 3, 1)
