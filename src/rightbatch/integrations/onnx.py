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
from rightbatch.integrations._onnx_batch import BatchAxis, find_batch_axis
from rightbatch.integrations._onnx_input import WAY_ROUND, ImageInput
from rightbatch.integrations._onnx_runtime import (
    default_threads,
    devices,
    open_session,
    run_quietly,
)
from rightbatch.integrations._pixels import Image, Shape
from rightbatch.integrations._yolo_outputs import Classifier, Detector, Metadata, RawOutputs

__all__ = ["OnnxModel", "devices", "open_model"]

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

    The input is N×3×H×W or N×H×W×3, or has one channel (gray), of float32, float16 (0 to 1) or
    uint8; N, H and W are fixed or dynamic. If N is fixed, the last part of a batch is padded.
    Files that Ultralytics did not export are tried with batches of noise when they are opened:
    where the file takes fewer than it declares, `note` says so. `is_batch_dynamic` is what the file
    declares; `by_image` has for each output whether its first axis is that of the images.

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
        self._input = ImageInput.of(self.name, self._session.get_inputs())
        metadata = Metadata.of(self._session.get_modelmeta().custom_metadata_map)
        self._axis = self._batch_axis(path, metadata)
        self._batch = self._axis.size
        self.sizes = None if self._batch is None else (self._batch,)
        self.note = self._axis.reason
        self.by_image = self._axis.by_image
        self.is_batch_dynamic = self._input.batch is None
        self._head = self._open_head(metadata, options)
        self._buffer = np.empty(0, self._input.dtype)

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
            outputs = self._checked(session.run(None, {self._input.name: part}), len(part))
            found = [
                output[: end - start] if is_row else output[None]
                for output, is_row in zip(outputs, self.by_image, strict=True)
            ]
            return self._head.results(found, images[start:end])

        run_parts = self._pool.map if runs_in_threads else map
        return [result for part in run_parts(run, starts, starts[1:]) for result in part]

    def _batch_axis(self, path: Path, metadata: Metadata | None) -> BatchAxis:
        outputs = self._session.get_outputs()
        if metadata is not None:  # of a known exporter
            batch = self._input.batch if metadata.batch is None else metadata.batch
            return BatchAxis(batch, (True,) * len(outputs))
        session = self._session
        if self.device == "tensorrt":  # builds an engine for every shape, which takes minutes
            session = open_session(path, "cpu", self._threads)[0]
        name = self._input.name
        return find_batch_axis(lambda x: run_quietly(session, {name: x}), self._input, outputs)

    def _checked(self, outputs: list[Any], size: int) -> list[NDArray[Any]]:
        for output, is_row in zip(outputs, self.by_image, strict=True):
            is_array = isinstance(output, np.ndarray)
            if not is_array or (is_row and (output.ndim == 0 or len(output) != size)):
                raise UsageError(
                    f"{self.name} must have outputs whose first axis has length {size} (the "
                    f"images), got {getattr(output, 'shape', type(output).__name__)}; {WAY_ROUND}"
                )
        return outputs

    def _batch_of(self, size: int, shape: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the batch in the model's layout and as NHWC; both are views of one buffer."""
        length = size * shape[0] * shape[1] * self._input.channels
        if self._buffer.size < length:
            self._buffer = np.empty(length, self._input.dtype)
        batch = self._input.batch_in(self._buffer, size, shape)
        return batch, self._input.as_NHWC(batch)

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
            if options and self._input.dtype == np.uint8:
                raise UsageError(f"{self.name} has a uint8 input, which is not normalized")
            channels = self._input.channels
            for option, values in options.items():
                if len(values) not in (1, channels):
                    raise UsageError(
                        f"{self.name} has {channels} channel(s); --{option} takes 1 or {channels} "
                        f"numbers, got {len(values)}"
                    )
            return RawOutputs(self._input.shape, **options)
        if self._input.channels != 3:
            raise UsageError(
                f"{self.name} has an input of {self._input.channels} channel(s), which is not "
                "decoded for Ultralytics' models; use the .pt file with ultralytics"
            )
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
        is_free = self._input.shape == (None, None)
        if rect and not is_free:
            height, width = (side or "any" for side in self._input.shape)
            raise UsageError(
                f"{self.name} does not support rect=True: it is exported for {height}×{width}; "
                "export it with dynamic=True for other shapes"
            )
        return Detector(metadata, imgsz, rect=is_free and (rect or rect is None), **options)

    def _imgsz(self, metadata: Metadata, imgsz_option: Any) -> Shape:
        height, width = self._input.shape
        if imgsz_option is None:
            return height or metadata.imgsz[0], width or metadata.imgsz[1]
        imgsz = (imgsz_option,) * 2 if isinstance(imgsz_option, int) else tuple(imgsz_option)
        wrong = [
            side
            for side, fixed in zip(imgsz, self._input.shape, strict=True)
            if side % metadata.stride or side < 1 or (fixed and side != fixed)
        ]
        if wrong:
            raise UsageError(
                f"{self.name} does not support imgsz={imgsz_option}: it is exported for "
                + (f"{height}×{width}" if height else "dynamic shapes")
                + f", multiples of {metadata.stride}"
            )
        return imgsz[0], imgsz[1]
