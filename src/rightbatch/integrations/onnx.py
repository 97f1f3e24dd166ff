"""ONNX files as models, with ONNX Runtime on CUDA, OpenVINO, CoreML, the CPU and others.

Files exported by Ultralytics contain metadata: their images are letterboxed and their boxes decoded
here, without ultralytics. For other files the result is a list of the outputs for each image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import UsageError
from rightbatch._serve.models.results import run_grouped
from rightbatch.integrations._onnx_runtime import default_threads, devices, open_session
from rightbatch.integrations._pixels import Image, Shape
from rightbatch.integrations._yolo_outputs import Classifier, Detector, Metadata, RawOutputs

__all__ = ["OnnxModel", "devices", "open_model"]

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_OPTIONS = {
    "detect": ("imgsz", "rect", "conf", "iou", "max_det"),
    "classify": ("imgsz",),
    "": ("mean", "std"),
}


class Head(Protocol):
    """Preprocesses images and decodes outputs for one kind of model."""

    def shape_of(self, image: Image) -> Shape:
        """Return the (height, width) at which the model gets this image."""

    def write(self, image: Image, out_HWC: NDArray[Any]) -> None:
        """Write the preprocessed image into its place in a batch."""

    def results(self, outputs: list[NDArray[Any]], images: list[Image]) -> list[Any]:
        """Return one result per image."""


def open_model(spec: str, *, device: str | None = None, **options: Any) -> OnnxModel | None:
    """Open an `.onnx` file; return None for any other spec.

    Raises:
        UsageError: if the file does not exist, or its model is not supported.
        MissingExtraError: if onnxruntime is not installed.
    """
    path = Path(spec).expanduser()
    if path.suffix.lower() != ".onnx":
        return None
    if not path.is_file():
        raise UsageError(f"file {spec} not found in {path.resolve().parent}")
    return OnnxModel(path, device=device, **options)


class OnnxModel:
    """An ONNX model with one image input.

    The input is N×3×H×W or N×H×W×3, of float32, float16 (0 to 1) or uint8; N, H and W are fixed or
    dynamic. If N is fixed, the last part of a batch is padded.

    Args:
        path: the file.
        device: one of `devices()`, `cuda:1` for the second GPU; by default the best one.
        threads: on the CPU; by default the number of cores, or `OMP_NUM_THREADS`. A batch with at
            least one image per thread is split into that many parts, which run concurrently in a
            second, single-threaded session.
        options: for files of Ultralytics `imgsz` and `rect` (if the shape is dynamic), `conf`,
            `iou` (if the model has no non-maximum suppression), `max_det` (see `Detector`); for
            others `mean` and `std` (see `RawOutputs`).

    Raises:
        UsageError: if the model is not supported, or an option is invalid.
        MissingExtraError: if onnxruntime is not installed.
    """

    def __init__(
        self, path: Path, *, device: str | None = None, threads: int | None = None, **options: Any
    ) -> None:
        self.name = path.name
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self._threads = threads or default_threads()
        self._session, self.device = open_session(path, device, self._threads)
        # On the CPU one thread per image is faster than all threads on each operator: YOLO26n at
        # 320 px on two cores takes 4.3 ms instead of 5.4 ms per image in a batch of 8.
        is_parallel = self.device == "cpu" and self._threads > 1
        self._single: Any = open_session(path, "cpu", 1)[0] if is_parallel else None
        self._pool = ThreadPoolExecutor(self._threads, f"rightbatch-{path.name}")
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise UsageError(
                f"{self.name} has {len(inputs)} inputs ({names}); expected one image input"
            )
        self._input = inputs[0].name
        self._batch = self._read_shape(inputs[0].shape, inputs[0].type)
        metadata = Metadata.of(self._session.get_modelmeta().custom_metadata_map)
        if metadata is not None and metadata.batch is not None:
            self._batch = metadata.batch
        self.sizes = None if self._batch is None else (self._batch,)
        self._head = self._open_head(metadata, options)
        self._buffer = np.empty(0, self._type)

    def __call__(self, images: list[Image]) -> list[Any]:
        """Return one result per image."""
        return run_grouped(images, self._head.shape_of, self._run) if images else []

    def close(self) -> None:
        """Stop the threads and free the sessions."""
        self._session = self._single = None
        self._pool.shutdown(wait=False)  # do not wait for a run that hangs

    def _run(self, images: list[Image]) -> list[Any]:
        """Run images of one shape in parts: of the fixed batch size, or one part per thread."""
        count, threads = len(images), self._threads
        if self._batch is not None:
            starts = [*range(0, count, self._batch), count]
        elif self._single is not None and count >= threads:
            starts = [count * part // threads for part in range(threads + 1)]
        else:
            starts = [0, count]
        size = -(-count // self._batch) * self._batch if self._batch else count
        batch, batch_NHWC = self._batch_of(size, self._head.shape_of(images[0]))
        batch[count:] = 0
        runs_in_threads = self._single is not None and len(starts) > threads
        session = self._single if runs_in_threads else self._session

        def run(start: int, end: int) -> list[Any]:
            for image, out_HWC in zip(images[start:end], batch_NHWC[start:end], strict=True):
                self._head.write(image, out_HWC)
            part = batch[start : start + self._batch] if self._batch else batch[start:end]
            outputs = self._checked(session.run(None, {self._input: part}), len(part))
            found = [output[: end - start] for output in outputs]
            return self._head.results(found, images[start:end])

        run_parts = self._pool.map if runs_in_threads else map
        return [result for part in run_parts(run, starts, starts[1:]) for result in part]

    def _checked(self, outputs: list[Any], size: int) -> list[NDArray[Any]]:
        for output in outputs:
            if not isinstance(output, np.ndarray) or output.ndim == 0 or len(output) != size:
                raise UsageError(
                    f"{self.name} must have outputs whose first axis has length {size} (the "
                    f"images), got {getattr(output, 'shape', type(output).__name__)}"
                )
        return outputs

    def _batch_of(self, size: int, shape: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the batch in the model's layout and as NHWC; both are views of one buffer."""
        length = size * shape[0] * shape[1] * 3
        if self._buffer.size < length:
            self._buffer = np.empty(length, self._type)
        memory = self._buffer[:length]
        if self._is_channels_last:
            batch = memory.reshape(size, *shape, 3)
            return batch, batch
        batch = memory.reshape(size, 3, *shape)
        return batch, batch.transpose(0, 2, 3, 1)

    def _read_shape(self, shape: list[int | str | None], kind: str) -> int | None:
        """Store dtype, layout, height and width; return the batch size, None if dynamic."""
        fixed = [side if isinstance(side, int) and side > 0 else None for side in shape]
        if len(fixed) != 4 or 3 not in (fixed[1], fixed[3]) or kind not in _TYPES:
            raise UsageError(
                f"{self.name} has an input {kind} of {shape}; expected N×3×H×W or N×H×W×3 of "
                f"{', '.join(_TYPES)}"
            )
        self._type = np.dtype(_TYPES[kind])
        self._is_channels_last = fixed[1] != 3
        height, width = fixed[1:3] if self._is_channels_last else fixed[2:4]
        self._shape = (height, width)
        return fixed[0]

    def _open_head(self, metadata: Metadata | None, options: dict[str, Any]) -> Head:
        task = metadata.task if metadata else ""
        if task not in _OPTIONS:
            raise UsageError(
                f"{self.name} is a model for {task!r}, whose outputs cannot be decoded (supported: "
                "detect, classify); use the .pt file with ultralytics"
            )
        unknown = options.keys() - set(_OPTIONS[task])
        if unknown:
            raise UsageError(
                f"{self.name} has no option {', '.join(sorted(unknown))}; "
                f"options: threads, {', '.join(_OPTIONS[task])}"
            )
        options = {key: value for key, value in options.items() if value is not None}
        if metadata is None:
            if options and self._type == np.uint8:
                raise UsageError(f"{self.name} has a uint8 input, which is not normalized")
            return RawOutputs(self._shape, **options)
        imgsz = self._imgsz(metadata, options.pop("imgsz", None))
        if task == "classify":
            return Classifier(metadata, imgsz)
        return self._detector(metadata, imgsz, **options)

    def _detector(
        self, metadata: Metadata, imgsz: Shape, *, rect: bool | None = None, **options: Any
    ) -> Detector:
        if metadata.head == "RTDETRDecoder":
            raise UsageError(
                f"{self.name} has the head {metadata.head}, whose outputs cannot be decoded; "
                "use the .pt file with ultralytics"
            )
        if "iou" in options and metadata.has_suppression:
            raise UsageError(
                f"{self.name} has no option iou: the model includes non-maximum suppression"
            )
        is_free = self._shape == (None, None)
        if rect and not is_free:
            height, width = (side or "any" for side in self._shape)
            raise UsageError(
                f"{self.name} does not support rect=True: it is exported for {height}×{width}; "
                "export it with dynamic=True for other shapes"
            )
        return Detector(metadata, imgsz, rect=is_free and (rect or rect is None), **options)

    def _imgsz(self, metadata: Metadata, imgsz_option: Any) -> Shape:
        height, width = self._shape
        if imgsz_option is None:
            return height or metadata.imgsz[0], width or metadata.imgsz[1]
        imgsz = (imgsz_option,) * 2 if isinstance(imgsz_option, int) else tuple(imgsz_option)
        wrong = [
            side
            for side, fixed in zip(imgsz, self._shape, strict=True)
            if side % metadata.stride or side < 1 or (fixed and side != fixed)
        ]
        if wrong:
            raise UsageError(
                f"{self.name} does not support imgsz={imgsz_option}: it is exported for "
                + (f"{height}×{width}" if height else "dynamic shapes")
                + f", multiples of {metadata.stride}"
            )
        return imgsz[0], imgsz[1]
