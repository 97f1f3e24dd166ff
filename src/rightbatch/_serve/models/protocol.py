"""The `Model` protocol: a list of images in, one result for each out.

Axes: N images, H, W, C channels.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from rightbatch._errors import MissingExtraError

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError:
    raise MissingExtraError("numpy", "serve") from None

Image = NDArray[np.uint8]  # H×W×3, RGB


@runtime_checkable
class Model(Protocol):
    """A model that can be served.

    It is called with a list of H×W×3 uint8 RGB arrays, whose sizes may differ, and returns a list
    of one result each, in order, on the host. `json_default` must be able to convert a result. The
    result of an image must not depend on the other images of the batch. Calls come from one thread
    at a time.
    """

    name: str
    sizes: tuple[int, ...] | None
    """The batch sizes that the model accepts (others are padded); None: any."""

    def __call__(self, images: list[Image]) -> list[Any]: ...

    def close(self) -> None:
        """Free its resources; may be called twice."""
