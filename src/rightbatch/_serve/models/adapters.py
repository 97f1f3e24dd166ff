"""A function or a torch module as a `Model`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rightbatch._errors import UsageError
from rightbatch._serve.models.protocol import Image
from rightbatch._serve.models.results import check_result_per_image, run_grouped, split_by_image

if TYPE_CHECKING:
    from torch import nn


class FunctionModel:
    """A function on a list of images, whose number of results is checked."""

    sizes: tuple[int, ...] | None = None

    def __init__(self, function: Callable[[list[Image]], Any], name: str = "") -> None:
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"{name_of(function)} is a coroutine function; pass a plain function")
        self._function = function
        self.name = name or name_of(function)

    def __call__(self, images: list[Image]) -> list[Any]:
        if not images:
            return []
        return check_result_per_image(self._function(images), len(images), self.name)

    def close(self) -> None:
        pass


class TorchModel:
    """A torch module.

    Its input is an N×3×H×W tensor, RGB in 0 to 1, on `device`, with the dtype of its parameters.
    Images of different shapes run in separate batches. From now until `close` the module is in
    evaluation mode; it runs in inference mode.

    The output is split by image: a tensor along its first axis; tuples, lists and mappings by part;
    a list with one mapping per image (torchvision's detectors) as it is. Results are moved to the
    host, which synchronizes the device.

    Args:
        module: used directly, not copied; it is moved to `device`.
        device: by default that of its parameters.
    """

    sizes: tuple[int, ...] | None = None

    def __init__(self, module: nn.Module, device: str | None = None) -> None:
        import torch

        self.name = type(module).__name__
        self._module = module
        if device is not None:
            from rightbatch._device import open_device

            open_device(device)  # lists the available devices if this one does not exist
            module.to(device)
        sample = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        self._device, self._dtype = sample.device, sample.dtype
        self._in_training = [part for part in module.modules() if part.training]
        module.eval()

    def __call__(self, images: list[Image]) -> list[Any]:
        return run_grouped(images, lambda image: image.shape, self._run)

    def _run(self, images: list[Image]) -> list[Any]:
        import torch

        with torch.inference_mode():
            bytes_NHWC = torch.from_numpy(np.stack(images)).to(self._device)
            x_NCHW = bytes_NHWC.permute(0, 3, 1, 2).to(self._dtype).contiguous().div_(255)
            return split_by_image(self._module(x_NCHW), len(images), self.name)

    def close(self) -> None:
        for part in self._in_training:
            part.training = True
        self._in_training = []


def name_of(spec: Any) -> str:
    return str(getattr(spec, "__name__", None) or type(spec).__name__)
