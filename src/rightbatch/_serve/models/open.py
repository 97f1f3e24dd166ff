"""Models: what turns a list of images into a list of results, one for each, in order.

A callable, a torch module and `file.py:function` are known here. Every other spec is offered to the
integrations, which register a function `open_model(spec, *, device=None, **options)` under the
entry point group `rightbatch.models`; it returns a `Model`, or None for what is not its own.

Axes: N images, H, W, C channels.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._errors import RightbatchError, UsageError, WorkloadError
from rightbatch._serve.models.adapters import FunctionModel, TorchModel, name_of
from rightbatch._serve.models.protocol import Image, Model
from rightbatch._workload.factory import FileFactory

if TYPE_CHECKING:
    from torch import nn

_KINDS = (
    "a function (a list of H×W×3 uint8 RGB arrays in, a list of results out), a torch module, "
    "file.py:FUNCTION"
)


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
        raise UsageError(f"{name_of(spec)} takes no options, got {', '.join(sorted(options))}")
    if isinstance(spec, type):
        raise UsageError(f"{name_of(spec)} is a class: give an instance of it")
    torch = sys.modules.get("torch")  # a module of torch cannot be without it
    if torch is not None and isinstance(spec, torch.nn.Module):
        return TorchModel(spec, device)
    if device is not None:
        raise UsageError(f"{name_of(spec)} decides itself where it runs; leave out device={device}")
    if isinstance(spec, Model):
        return spec
    if not callable(spec):
        raise UsageError(f"a model is {_KINDS} or a model file, got {name_of(spec)}")
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
