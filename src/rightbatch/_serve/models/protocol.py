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
    """What is served.

    Called with a list of H×W×3 uint8 RGB arrays, whose sizes may differ, it returns one result for
    each, in order, once they are on the host. `plain` makes a result JSON. What an image gives does
    not depend on the others of its batch. It is called from one thread at a time.
    """

    name: str
    sizes: tuple[int, ...] | None
    """The only sizes that a batch can have (others are padded); None: any."""

    def __call__(self, images: list[Image]) -> list[Any]: ...

    def close(self) -> None:
        """Give back what it holds; twice is as good as once."""
