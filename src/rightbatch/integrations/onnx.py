"""ONNX files through ONNX Runtime, on whatever it has here: CUDA, OpenVINO, CoreML, the CPU.

A file that Ultralytics exported says what it is: its pictures are letterboxed and its boxes decoded
here, without ultralytics. Any other gives a list of its outputs for each picture.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.models.results import run_grouped
from rightbatch.integrations._pixels import Image, Shape
from rightbatch.integrations._yolo_outputs import Classifier, Detector, Metadata, Plain

# Best first. TensorRT is taken only by name: it builds an engine, for minutes, for every shape.
_PROVIDERS = {
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
_BY_DEFAULT = ("cuda", "migraphx", "directml", "coreml", "openvino", "cpu")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_OPTIONS = {
    "detect": ("imgsz", "rect", "conf", "iou", "max_det"),
    "classify": ("imgsz",),
    "": ("mean", "std"),
}


class Head(Protocol):
    """What knows a model's pictures and outputs."""

    def shape_of(self, image: Image) -> Shape:
        """That the model is given this picture in."""

    def write(self, image: Image, out_HWC: NDArray[Any]) -> None:
        """The picture into its place of a batch."""

    def results(self, outputs: list[NDArray[Any]], images: list[Image]) -> list[Any]:
        """One for each picture."""


def open_model(spec: str, *, device: str | None = None, **options: Any) -> OnnxModel | None:
    """The model in an `.onnx` file; None for any other spec.

    Raises:
        UsageError: if there is no such file, or it cannot be served.
        MissingExtraError: if onnxruntime is not installed.
    """
    path = Path(spec).expanduser()
    if path.suffix.lower() != ".onnx":
        return None
    if not path.is_file():
        raise UsageError(f"there is no file {spec}; looked in {path.resolve().parent}")
    return OnnxModel(path, device=device, **options)


def devices() -> list[str]:
    """What the installed ONNX Runtime was built for, best first."""
    available = _onnxruntime().get_available_providers()
    return [name for name, provider in _PROVIDERS.items() if provider in available]


class OnnxModel:
    """A model with one input of pictures.

    The input is N×3×H×W or N×H×W×3, of float32, float16 (0 to 1) or uint8; N, H and W are fixed or
    not. Where N is fixed, the last part of a batch is padded.

    Args:
        path: the file.
        device: one of `devices()`, `cuda:1` for the second of them; by default the best.
        threads: on the CPU; by default one for each core, or `OMP_NUM_THREADS`. A batch with a
            picture or more for each is run in that many parts at once, by a second session.
        options: of Ultralytics' files `imgsz` and `rect` (where the shape is not fixed), `conf`,
            `iou` (where boxes do not come out final), `max_det` (see `Detector`); of others `mean`
            and `std` (see `Plain`).

    Raises:
        UsageError: if it cannot be served, or an option cannot be meant.
        MissingExtraError: if onnxruntime is not installed.
    """

    def __init__(
        self, path: Path, *, device: str | None = None, threads: int | None = None, **options: Any
    ) -> None:
        self.name = path.name
        if threads is not None and threads < 1:
            raise UsageError(f"threads are at least 1, got {threads}")
        self._threads = threads or _threads()
        self._session, self.device = _session(path, device, self._threads)
        # On the CPU whole pictures in threads of their own are faster than all threads on each
        # operator: YOLO26n at 320 on two cores, 4.3 ms a picture of a batch of 8 against 5.4.
        is_wide = self.device == "cpu" and self._threads > 1
        self._narrow: Any = _session(path, "cpu", 1)[0] if is_wide else None
        self._pool = ThreadPoolExecutor(self._threads, f"rightbatch-{path.name}")
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            named = ", ".join(one.name for one in inputs)
            raise UsageError(
                f"{self.name} has {len(inputs)} inputs ({named}); one of pictures fits"
            )
        self._input = inputs[0].name
        self._batch = self._read_shape(inputs[0].shape, inputs[0].type)
        metadata = Metadata.of(self._session.get_modelmeta().custom_metadata_map)
        if metadata is not None and metadata.batch is not None:
            self._batch = metadata.batch
        self.sizes = None if self._batch is None else (self._batch,)
        self._head = self._open_head(metadata, options)
        self._memory = np.empty(0, self._type)

    def __call__(self, images: list[Image]) -> list[Any]:
        """One result for each."""
        return run_grouped(images, self._head.shape_of, self._run) if images else []

    def close(self) -> None:
        """Ends the threads and gives the memory back."""
        self._session = self._narrow = None
        self._pool.shutdown(wait=False)  # a run that hangs holds nobody up

    def _run(self, images: list[Image]) -> list[Any]:
        """Images of one shape, in parts: of the only size that there is, or one for each thread."""
        count, threads = len(images), self._threads
        if self._batch is not None:
            starts = [*range(0, count, self._batch), count]
        elif self._narrow is not None and count >= threads:
            starts = [count * part // threads for part in range(threads + 1)]
        else:
            starts = [0, count]
        size = -(-count // self._batch) * self._batch if self._batch else count
        batch, batch_NHWC = self._batch_of(size, self._head.shape_of(images[0]))
        batch[count:] = 0
        is_apart = self._narrow is not None and len(starts) > threads
        session = self._narrow if is_apart else self._session

        def run(start: int, end: int) -> list[Any]:
            for image, out_HWC in zip(images[start:end], batch_NHWC[start:end], strict=True):
                self._head.write(image, out_HWC)
            part = batch[start : start + self._batch] if self._batch else batch[start:end]
            outputs = self._checked(session.run(None, {self._input: part}), len(part))
            found = [output[: end - start] for output in outputs]
            return self._head.results(found, images[start:end])

        in_turn = self._pool.map if is_apart else map
        return [result for part in in_turn(run, starts, starts[1:]) for result in part]

    def _checked(self, outputs: list[Any], size: int) -> list[NDArray[Any]]:
        for output in outputs:
            if not isinstance(output, np.ndarray) or output.ndim == 0 or len(output) != size:
                raise UsageError(
                    f"{self.name} must have outputs whose first axis is the {size} image(s), "
                    f"got {getattr(output, 'shape', type(output).__name__)}"
                )
        return outputs

    def _batch_of(self, size: int, shape: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
        """The batch as the model takes it, and channels last; the same memory for every batch."""
        length = size * shape[0] * shape[1] * 3
        if self._memory.size < length:
            self._memory = np.empty(length, self._type)
        memory = self._memory[:length]
        if self._is_channels_last:
            batch = memory.reshape(size, *shape, 3)
            return batch, batch
        batch = memory.reshape(size, 3, *shape)
        return batch, batch.transpose(0, 2, 3, 1)

    def _read_shape(self, shape: list[int | str | None], kind: str) -> int | None:
        """Its type, layout, height and width; returns the batch, None where any is taken."""
        fixed = [side if isinstance(side, int) and side > 0 else None for side in shape]
        if len(fixed) != 4 or 3 not in (fixed[1], fixed[3]) or kind not in _TYPES:
            raise UsageError(
                f"{self.name} takes {kind} of {shape}; pictures fit into N×3×H×W or N×H×W×3 of "
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
                f"{self.name} is a model for {task!r}, whose outputs are not decoded here (known: "
                "detect, classify); use the .pt through ultralytics"
            )
        unknown = options.keys() - set(_OPTIONS[task])
        if unknown:
            raise UsageError(
                f"{self.name} has no option {', '.join(sorted(unknown))}; "
                f"it has threads, {', '.join(_OPTIONS[task])}"
            )
        options = {key: value for key, value in options.items() if value is not None}
        if metadata is None:
            if options and self._type == np.uint8:
                raise UsageError(f"{self.name} takes bytes, which are not normalized")
            return Plain(self._shape, **options)
        imgsz = self._imgsz(metadata, options.pop("imgsz", None))
        if task == "classify":
            return Classifier(metadata, imgsz)
        return self._detector(metadata, imgsz, **options)

    def _detector(
        self, metadata: Metadata, imgsz: Shape, *, rect: bool | None = None, **options: Any
    ) -> Detector:
        if metadata.head == "RTDETRDecoder":
            raise UsageError(
                f"{self.name} has the head {metadata.head}, whose outputs are not decoded here; "
                "use the .pt through ultralytics"
            )
        if "iou" in options and metadata.has_suppression:
            raise UsageError(
                f"{self.name} takes no iou: its boxes come out final, there is nothing to suppress"
            )
        is_free = self._shape == (None, None)
        if rect and not is_free:
            height, width = (side or "any" for side in self._shape)
            raise UsageError(
                f"{self.name} takes no rect=True: it is exported for {height}×{width}; "
                "exported with dynamic=True it takes any shape"
            )
        return Detector(metadata, imgsz, rect=is_free and (rect or rect is None), **options)

    def _imgsz(self, metadata: Metadata, asked: Any) -> Shape:
        height, width = self._shape
        if asked is None:
            return height or metadata.imgsz[0], width or metadata.imgsz[1]
        imgsz = (asked, asked) if isinstance(asked, int) else tuple(asked)
        wrong = [
            side
            for side, fixed in zip(imgsz, self._shape, strict=True)
            if side % metadata.stride or side < 1 or (fixed and side != fixed)
        ]
        if wrong:
            raise UsageError(
                f"{self.name} takes no imgsz={asked}: it is "
                + (f"exported for {height}×{width}" if height else "of any shape")
                + f", in steps of {metadata.stride}"
            )
        return imgsz[0], imgsz[1]


def _session(path: Path, device: str | None, threads: int) -> tuple[Any, str]:
    """A session, and the name of the device that it runs on."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what it warns of is that it falls back, said below
    options.intra_op_num_threads = threads
    available = devices()
    name, _, index = (device or "").partition(":")
    if device is not None and name not in available:
        known = ", ".join(available)
        raise UsageError(
            f"the ONNX Runtime here has no device {device!r}, it has {known}; others come with "
            "builds of it (onnxruntime-gpu, onnxruntime-openvino, onnxruntime-directml)"
        )
    wanted = [name] if device else [one for one in _BY_DEFAULT if one in available]
    settings: list[dict[str, str]] = [{"device_id": index} if index else {}]
    settings += [{}] * (len(wanted) - 1)
    providers = [_PROVIDERS[one] for one in wanted]
    if "cpu" not in wanted:  # for the operators that the device has not
        providers.append(_PROVIDERS["cpu"])
        settings.append({})
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=providers, provider_options=settings
        )
    except Exception as error:
        raise UsageError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {error}"
        ) from error
    names = {provider: one for one, provider in _PROVIDERS.items()}
    active = names.get(session.get_providers()[0], session.get_providers()[0])
    if device is not None and active != name:
        raise UsageError(
            f"ONNX Runtime could not start on {device}, and fell back to {active}; "
            "its driver or its libraries are missing"
        )
    return session, active


def _threads() -> int:
    """Cores that this process may use; the runtime's own default forgets what a container has."""
    import psutil

    asked = os.environ.get("OMP_NUM_THREADS", "")  # Ray sets it to a replica's share
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(cores, len(os.sched_getaffinity(0))) if sys.platform == "linux" else cores


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "serve") from None
    return onnxruntime
