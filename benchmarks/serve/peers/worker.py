"""The work that every system does: pictures in, boxes out, by the same ONNX Runtime session.

Two threads that do not spin while they wait: spinning ones take the cores that the client, the
server's event loop or the cameras need, and made every system slower here. Needs numpy and ONNX
Runtime only, as every environment of the comparison has them.

Axes: N images, H, W, C channels, A boxes that the model gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

IMGSZ, THREADS = 320, 2
_CONFIDENCE = 0.25


class Worker:
    """Called with a list of pictures, or of their bytes, it gives the boxes of each."""

    def __init__(self, path: str) -> None:
        self._session = onnxruntime.InferenceSession(
            path, session_options(), providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: list[Any]) -> list[list[list[float]]]:
        batch_NHWC = np.stack([_picture(image) for image in images])
        batch_NCHW = np.empty((len(images), 3, IMGSZ, IMGSZ), np.float32)
        np.divide(batch_NHWC.transpose(0, 3, 1, 2), np.float32(255), out=batch_NCHW)
        (output,) = self._session.run(None, {"images": batch_NCHW})
        return [_boxes(one) for one in output]


def session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def pictures(count: int = 16, seed: int = 0) -> list[np.ndarray]:
    """What is sent: noise, whose boxes cost what those of any picture cost."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, IMGSZ, IMGSZ, 3), dtype=np.uint8))


def _picture(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    return np.frombuffer(image, np.uint8).reshape(IMGSZ, IMGSZ, 3)


def _boxes(output: np.ndarray) -> list[list[float]]:
    """Of one image, A×6: corners, confidence and class of the sure ones."""
    return output[output[:, 4] > _CONFIDENCE].round(3).tolist()
