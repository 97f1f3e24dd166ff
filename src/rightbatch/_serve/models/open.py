"""Open the model that a spec names.

Callables, torch modules and `file.py:function` are handled here. Any other spec is passed to the
integrations: functions `open_model(spec, *, device=None, **options)` in the entry point group
`rightbatch.models` that return a `Model`, or None if the spec is not theirs.
"""

from __future__ import annotations

import sys
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
    """Open the model that `spec` names.

    Args:
        spec: a callable on a list of images; a torch module (see `TorchModel` for its input);
            `"file.py:function"`, which is one of these two; or a file that an integration supports
            (`yolo26n.onnx`, `yolo26n.pt`). A `Model` is returned unchanged.
        device: where it runs, for torch modules and integrations.
        options: of the integration (`imgsz`, `conf`, `threads`).

    Raises:
        UsageError: if the spec is none of these, or an option is not supported.
    """
    if isinstance(spec, str | Path):
        return _from_text(str(spec), device, options)
    if options:
        raise UsageError(f"{name_of(spec)} takes no options, got {', '.join(sorted(options))}")
    if isinstance(spec, type):
        raise UsageError(f"{name_of(spec)} is a class; pass an instance of it")
    torch = sys.modules.get("torch")  # imported already if `spec` is a torch module
    if torch is not None and isinstance(spec, torch.nn.Module):
        return TorchModel(spec, device)
    if device is not None:
        raise UsageError(f"{name_of(spec)} chooses its own device; leave out device={device}")
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
        return open_model(_load(path, function), device=device, **options)
    integrations = entry_points(group="rightbatch.models")
    for integration in integrations:
        model: Model | None = integration.load()(text, device=device, **options)
        if model is not None:
            return model
    known = ", ".join(sorted(integration.name for integration in integrations)) or "none"
    hint = f"; did you mean {text}:FUNCTION?" if text.endswith(".py") else ""
    raise UsageError(
        f"{text!r} is not a model: expected {_KINDS} or a file that an integration supports "
        f"(installed: {known}){hint}"
    )


def _load(path: Path, function: str) -> Any:
    """Run the file and return what it defines under that name.

    Raises:
        WorkloadError: if the file raises an error.
    """
    try:
        return FileFactory(path, function).load()
    except RightbatchError:
        raise
    except Exception as error:
        reason = f"{path.name} raised {type(error).__name__} while it was loaded: {error}"
        raise WorkloadError.of(error, reason) from error
