"""Names of devices and the execution providers of ONNX Runtime that run on them."""

from __future__ import annotations

from collections.abc import Iterable

# Best first. TensorRT only by name: it builds an engine for every shape, which takes minutes.
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


def providers_of(devices: Iterable[str]) -> list[str]:
    """Return the providers of `devices`, and the CPU's for operators that they do not support."""
    return [PROVIDERS[device] for device in dict.fromkeys((*devices, "cpu"))]
