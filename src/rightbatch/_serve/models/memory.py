"""Find the largest batch of images that a model holds within a memory limit, with `fit`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._device import open_device
from rightbatch._errors import UsageError
from rightbatch._fit.fit import fit
from rightbatch._fit.result import FitResult
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Model
from rightbatch._training.protocol import Ability, Training
from rightbatch._units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rightbatch._workload.workload import Precision, StepSeconds

_MAX_BATCH = 256  # images; default upper limit of the search


def largest_batch_within(
    memory: int | str,
    model: Any,
    shape: tuple[int, ...],
    *,
    device: str | None = None,
    max_batch: int | None = None,
    **options: Any,
) -> FitResult:
    """Find the largest batch that fits in `memory`; probes run in their own processes.

    Args:
        memory: bytes, or text like `"2GiB"`, on top of what the process holds without the model.
        model: an argument of `open_model` that can be pickled.
        shape: H×W×3, of the images.
        device: as for `open_model`.
        max_batch: upper limit of the search.
        options: of `open_model`.

    Raises:
        NothingFitsError: if a single image does not fit.
        UsageError: see `check_memory`.
    """
    check_memory(memory, model, device)
    return fit(
        _Served(model, shape, device, options),
        memory=memory,
        inference=True,
        device="cpu" if _is_file(model) else device,
        max_batch=max_batch or _MAX_BATCH,
        progress=False,
    )


def check_memory(memory: int | str, model: Any, device: str | None) -> None:
    """Check that the memory of the model can be measured.

    Raises:
        UsageError: if `memory` is not a size, or the model runs on a GPU outside of torch.
    """
    parse_bytes(memory)
    if _is_file(model) and (device or open_device().name) != "cpu":
        raise UsageError(
            f"the memory of {model} can be measured on the CPU only; pass max_batch or device=cpu"
        )


def _is_file(model: Any) -> bool:
    """Whether an integration opens it; torch does not see the GPU memory of its runtime."""
    return isinstance(model, str | Path) and not str(model).rpartition(":")[0].endswith(".py")


@dataclass(frozen=True)
class _Served(Training):
    """A model that is served, as a training that evaluates only; a probe opens it anew."""

    model: Any
    shape: tuple[int, ...]
    device: str | None
    options: dict[str, Any] = field(default_factory=dict)

    integration = "a model that is served"
    abilities = frozenset({Ability.EVALUATE})

    def session(self, device: str, *, seed: int, inference: bool) -> _Session:
        return _Session(open_model(self.model, device=self.device, **self.options), self.shape)


class _Session:
    """A `Session` for inference only."""

    examples = None
    varies = False
    notes = ()

    def __init__(self, model: Model, shape: tuple[int, ...]) -> None:
        import numpy as np

        self._model = model
        self._image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def evaluate(self, batch_size: int) -> int:
        # Copies, since the images of sources are separate arrays that count as memory.
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
