"""How many images of a size a model takes in so much memory: `fit`, in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._device import open_device
from rightbatch._errors import UsageError
from rightbatch._fit.fit import FitResult, fit
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Model
from rightbatch._units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rightbatch._workload.workload import Precision, StepSeconds

_MOST = 256  # images, where nobody said how many are wanted


def largest_batch_within(
    memory: int | str,
    model: Any,
    shape: tuple[int, ...],
    *,
    device: str | None = None,
    max_batch: int | None = None,
    **options: Any,
) -> FitResult:
    """The largest batch of a model that `memory` holds, over what a process holds without it.

    Args:
        memory: bytes, or text like `"2GiB"`.
        model: what `open_model` takes; it is sent to another process.
        shape: H×W×3, of the images.
        device: as for `open_model`.
        max_batch: nothing larger is tried.
        options: of `open_model`.

    Raises:
        NothingFitsError: if not even one image fits.
        UsageError: as `check_memory` does.
    """
    check_memory(memory, model, device)
    return fit(
        _Served(model, shape, device, options),
        memory=memory,
        inference=True,
        device="cpu" if _is_file(model) else device,
        max_batch=max_batch or _MOST,
        progress=False,
    )


def check_memory(memory: int | str, model: Any, device: str | None) -> None:
    """Whether it can be measured at all; measures nothing.

    Raises:
        UsageError: if it is no size, or the model runs where torch does not see its memory.
    """
    parse_bytes(memory)
    if _is_file(model) and (device or open_device().name) != "cpu":
        raise UsageError(
            f"the memory of {model} is measured on the CPU only; give max_batch, or device cpu"
        )


def _is_file(model: Any) -> bool:
    """Whether it is an integration's, whose memory on a GPU is none of torch's."""
    return isinstance(model, str | Path) and not str(model).rpartition(":")[0].endswith(".py")


@dataclass(frozen=True)
class _Served:
    """A factory: in the probe's process it opens the model anew."""

    model: Any
    shape: tuple[int, ...]
    device: str | None
    options: dict[str, Any] = field(default_factory=dict)

    def session(self, device: str, inference: bool) -> _Session:
        return _Session(open_model(self.model, device=self.device, **self.options), self.shape)


class _Session:
    """A `Session` that only evaluates."""

    examples = None
    varies = False

    def __init__(self, model: Model, shape: tuple[int, ...]) -> None:
        import numpy as np

        self._model = model
        self._image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def evaluate(self, batch_size: int) -> int:
        # Images that are read from sources are arrays of their own, and count as memory.
        self._model([self._image.copy() for _ in range(batch_size)])
        return batch_size

    def step(self, batch_size: int) -> None:
        raise UsageError("a model that is served does not train")

    def timed_step(self, batch_size: int, precision: Precision | None = None) -> StepSeconds:
        raise UsageError("a model that is served does not train")

    def modules(self) -> Sequence[nn.Module]:
        return []

    def close(self) -> None:
        self._model.close()
