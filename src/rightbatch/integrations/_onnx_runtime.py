"""Sessions of ONNX Runtime: devices, threads, providers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.models.onnx_providers import PROVIDERS, providers_of

_DEFAULTS = ("cuda", "migraphx", "directml", "coreml", "openvino", "cpu")


def devices() -> list[str]:
    """Return the devices that the installed ONNX Runtime was built for, best first."""
    available = _onnxruntime().get_available_providers()
    return [name for name, provider in PROVIDERS.items() if provider in available]


def open_session(path: Path, device: str | None, threads: int) -> tuple[Any, str]:
    """Open a session; return it with the name of its device.

    Raises:
        UsageError: if the device is not available, or the file cannot be loaded.
        MissingExtraError: if onnxruntime is not installed.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; a fallback to another device is checked below
    options.intra_op_num_threads = threads
    available = devices()
    name, _, index = (device or "").partition(":")
    if device is not None and name not in available:
        known = ", ".join(available)
        raise UsageError(
            f"ONNX Runtime has no device {device!r}; it has {known}; other builds have more "
            "(onnxruntime-gpu, onnxruntime-openvino, onnxruntime-directml)"
        )
    wanted = [name] if device else [one for one in _DEFAULTS if one in available]
    providers = providers_of(wanted)
    settings: list[dict[str, str]] = [{"device_id": index} if index else {}]
    settings += [{}] * (len(providers) - 1)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=providers, provider_options=settings
        )
    except Exception as error:
        raise UsageError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {error}"
        ) from error
    names = {provider: one for one, provider in PROVIDERS.items()}
    active = names.get(session.get_providers()[0], session.get_providers()[0])
    if device is not None and active != name:
        raise UsageError(
            f"ONNX Runtime could not use {device} and fell back to {active}; "
            "the driver or a library is missing"
        )
    return session, active


def run_quietly(session: Any, inputs: dict[str, Any]) -> list[Any]:
    """Run a session on inputs that it may refuse; errors are raised, but not printed."""
    options = _onnxruntime().RunOptions()
    options.log_severity_level = 4  # fatal errors only
    outputs: list[Any] = session.run(None, inputs, options)
    return outputs


def default_threads() -> int:
    """Return the cores that this process may use; the runtime's default ignores a container's."""
    import psutil

    setting = os.environ.get("OMP_NUM_THREADS", "")  # Ray sets it to a replica's share
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(cores, len(os.sched_getaffinity(0))) if sys.platform == "linux" else cores


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "serve") from None
    return onnxruntime
