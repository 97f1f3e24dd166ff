"""Models: what turns a list of images into a list of results, one for each, in order.

A callable, a torch module and `file.py:function` are known here. Every other spec is offered to the
integrations, which register a function `open_model(spec, *, device=None, **options)` under the
entry point group `rightbatch.models`; it returns a `Model`, or None for what is not its own.

Axes: N images, H, W, C channels.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from rightbatch._errors import MissingExtraError, RightbatchError, UsageError, WorkloadError
from rightbatch._workload.factory import FileFactory

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError:
    raise MissingExtraError("numpy", "serve") from None

if TYPE_CHECKING:
    from torch import nn

Image = NDArray[np.uint8]  # H×W×3, RGB
T = TypeVar("T")

_KINDS = (
    "a function (a list of H×W×3 uint8 RGB arrays in, a list of results out), a torch module, "
    "file.py:FUNCTION"
)


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


def open_model(
    spec: str | Path | Callable[[list[Image]], list[Any]] | nn.Module | Model,
    *,
    device: str | None = None,
    **options: Any,
) -> Model:
    """The model that `spec` names.

    Args:
        spec: a callable on a list of images; a torch module (see `TorchModel` for its input);
            `"file.py:function"`, which is one of these two; or a file that an integration knows
            (`yolo26n.onnx`, `yolo26n.pt`). A `Model` stays itself.
        device: where it runs, for those that do not decide that themselves.
        options: for the integration (`imgsz`, `conf`, `threads`).

    Raises:
        UsageError: if it is none of these, or does not take such an option.
    """
    if isinstance(spec, str | Path):
        return _from_text(str(spec), device, options)
    if options:
        raise UsageError(f"{_called(spec)} takes no options, got {', '.join(sorted(options))}")
    if isinstance(spec, type):
        raise UsageError(f"{_called(spec)} is a class: give an instance of it")
    torch = sys.modules.get("torch")  # a module of torch cannot be without it
    if torch is not None and isinstance(spec, torch.nn.Module):
        return TorchModel(spec, device)
    if device is not None:
        raise UsageError(f"{_called(spec)} decides itself where it runs; leave out device={device}")
    if isinstance(spec, Model):
        return spec
    if not callable(spec):
        raise UsageError(f"a model is {_KINDS} or a model file, got {_called(spec)}")
    return FunctionModel(spec)


def _from_text(text: str, device: str | None, options: dict[str, Any]) -> Model:
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {file}; looked in {path.parent}")
        found = _loaded(path, function)
        return open_model(found, device=device, **options)
    integrations = entry_points(group="rightbatch.models")
    for integration in integrations:
        model: Model | None = integration.load()(text, device=device, **options)
        if model is not None:
            return model
    known = ", ".join(sorted(integration.name for integration in integrations)) or "none"
    hint = f"; did you mean {text}:FUNCTION?" if text.endswith(".py") else ""
    raise UsageError(
        f"{text!r} is no model: it is neither {_KINDS} nor a file that an integration knows "
        f"(asked: {known}){hint}"
    )


def _loaded(path: Path, function: str) -> Any:
    """What the file has by that name; runs the file.

    Raises:
        WorkloadError: if that fails.
    """
    try:
        return FileFactory(path, function).load()
    except RightbatchError:
        raise
    except Exception as error:
        name = type(error).__name__
        raise WorkloadError(
            f"{path.name} failed when it was loaded: {name}: {error}",
            error_type=name,
            error_message=str(error),
            traceback=traceback.format_exc(),
        ) from error


class FunctionModel:
    """A function on a list of images; what it returns is checked."""

    sizes: tuple[int, ...] | None = None

    def __init__(self, function: Callable[[list[Image]], Any], name: str = "") -> None:
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"{_called(function)} is a coroutine function; a model is called")
        self._function = function
        self.name = name or _called(function)

    def __call__(self, images: list[Image]) -> list[Any]:
        if not images:
            return []
        return one_for_each(self._function(images), len(images), self.name)

    def close(self) -> None:
        pass


class TorchModel:
    """A torch module.

    Its input is an N×3×H×W tensor, RGB in 0 to 1, on `device`, of the type of its parameters
    (float32, unless it was made half). Images of different shapes are run apart, by shape. It is in
    evaluation mode from now until `close`, and runs in inference mode.

    What it returns is split by example: a tensor by its first axis; tuples, lists and mappings part
    by part; a list with a mapping for every image (as torchvision's detectors return) stays one.
    Results are moved to the host, which waits for the device.

    Args:
        module: itself, not a copy: it is moved where `device` says so.
        device: by default where its parameters are.
    """

    sizes: tuple[int, ...] | None = None

    def __init__(self, module: nn.Module, device: str | None = None) -> None:
        import torch

        self.name = type(module).__name__
        self._module = module
        if device is not None:
            from rightbatch._device import open_device

            open_device(device)  # says what is there, if it is not
            module.to(device)
        sample = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        self._device, self._dtype = sample.device, sample.dtype
        self._trained = [part for part in module.modules() if part.training]
        module.eval()

    def __call__(self, images: list[Image]) -> list[Any]:
        return by_kind(images, lambda image: image.shape, self._run)

    def _run(self, images: list[Image]) -> list[Any]:
        import torch

        with torch.inference_mode():
            bytes_NHWC = torch.from_numpy(np.stack(images)).to(self._device)
            x_NCHW = bytes_NHWC.permute(0, 3, 1, 2).to(self._dtype).contiguous().div_(255)
            return split(self._module(x_NCHW), len(images), self.name)

    def close(self) -> None:
        for part in self._trained:
            part.training = True
        self._trained = []


def by_kind(
    images: list[Image], kind: Callable[[Image], Hashable], run: Callable[[list[Image]], list[Any]]
) -> list[Any]:
    """`run` on the images of each kind, and the results in the order of `images`."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[kind(image)].append(place)
    if len(places) == 1:
        return run(images)
    results: list[Any] = [None] * len(images)
    for mine in places.values():
        for place, result in zip(mine, run([images[place] for place in mine]), strict=True):
            results[place] = result
    return results


def one_for_each(results: Any, count: int, name: str) -> list[Any]:
    """`results`, if they are a list with one for every image.

    Raises:
        UsageError: if they are not.
    """
    if not isinstance(results, list | tuple):
        hint = "; return list(...) of it" if hasattr(results, "__iter__") else ""
        raise UsageError(
            f"{name} must return a list with a result for each of {count} image(s), "
            f"got {type(results).__name__}{hint}"
        )
    if len(results) != count:
        raise UsageError(f"{name} must return {count} result(s), one an image, got {len(results)}")
    return list(results)


def split(output: Any, count: int, name: str) -> list[Any]:
    """What a module returned for `count` images, as a list with the part of each, on the host.

    Raises:
        UsageError: for a tensor whose first axis is not the images', and for what has no parts.
    """
    if isinstance(output, list) and output and all(isinstance(one, Mapping) for one in output):
        return [_on_host(one) for one in one_for_each(output, count, name)]
    return one_for_each(list(_parts(output, count, name)), count, name)


def _parts(output: Any, count: int, name: str) -> Iterator[Any]:
    if _is_tensor(output):
        if output.ndim == 0 or len(output) != count:
            raise UsageError(
                f"{name} must return tensors whose first axis is the {count} image(s), "
                f"got one of shape {tuple(output.shape)}"
            )
        return iter(_on_host(output).unbind(0))
    if isinstance(output, Mapping):
        parts = [_parts(value, count, name) for value in output.values()]
        return (dict(zip(output, values, strict=True)) for values in zip(*parts, strict=True))
    if isinstance(output, tuple | list):
        parts = [_parts(value, count, name) for value in output]
        kind = list if isinstance(output, list) else tuple
        return (kind(values) for values in zip(*parts, strict=True))
    raise UsageError(
        f"{name} must return tensors, or tuples, lists and mappings of them, "
        f"got {type(output).__name__}"
    )


def plain(value: Any) -> Any:
    """What JSON has no word for, as what it has: `json.dumps(result, default=plain)`."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if _is_tensor(value):
        return value.detach().cpu().tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | Sequence):
        return list(value)
    raise TypeError(f"a result has a {type(value).__name__}, which JSON cannot hold")


def _on_host(value: Any) -> Any:
    if _is_tensor(value):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_on_host(one) for one in value]
    return value


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _called(spec: Any) -> str:
    return str(getattr(spec, "__name__", None) or type(spec).__name__)
