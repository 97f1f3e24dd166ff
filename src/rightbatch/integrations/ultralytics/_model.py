"""Ultralytics' models (`yolo26n.pt`) for `serve`, a whole batch at a time.

Results have the format of exported files (`onnx.py`): `detections`, each with a `polygon` for
segmentation and oriented boxes, and `keypoints` for poses; or `classes`. An `.onnx`
file is served by `onnx.py`, which needs no ultralytics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._serve.models.results import run_grouped
from rightbatch.integrations._pixels import Image
from rightbatch.integrations._yolo_outputs import classes
from rightbatch.integrations.ultralytics._training import FAMILIES, require_ultralytics

_TASKS = ("detect", "segment", "pose", "obb", "classify")
_OPTIONS = ("imgsz", "rect", "conf", "iou", "max_det")


def open_model(spec: str, *, device: str | None = None, **options: Any) -> UltralyticsModel | None:
    """Open the model in a `.pt` file, or of a `.yaml` with random weights; None for other specs.

    Raises:
        UsageError: if the model does not exist or cannot be served.
        MissingExtraError: if ultralytics is not installed.
    """
    path = Path(spec).expanduser()
    if path.suffix not in (".pt", ".yaml", ".yml"):
        return None
    if not path.is_file() and not path.stem.lower().startswith(FAMILIES):
        raise UsageError(f"there is no file {spec}; looked in {path.resolve().parent}")
    return UltralyticsModel(spec, device=device, **options)


class UltralyticsModel:
    """An Ultralytics model in this process.

    Images of different shapes are run separately, since Ultralytics letterboxes a batch of one
    shape differently from a mixed one; with `rect=False` they run together, as squares.

    Args:
        spec: the argument of `ultralytics.YOLO`.
        device: Ultralytics' name of it; default: Ultralytics' choice.
        options: of Ultralytics' `predict`: `imgsz`, `rect`, `conf`, `iou`, `max_det`.

    Raises:
        UsageError: if it cannot be served, or for an unknown option.
        MissingExtraError: if ultralytics is not installed.
    """

    sizes: tuple[int, ...] | None = None

    def __init__(self, spec: str, *, device: str | None = None, **options: Any) -> None:
        unknown = options.keys() - set(_OPTIONS)
        if unknown:
            raise UsageError(
                f"{spec} has no option {', '.join(sorted(unknown))}; options: {', '.join(_OPTIONS)}"
            )
        require_ultralytics()
        from ultralytics import YOLO

        self.name = Path(spec).name
        try:
            self._model = YOLO(spec)
        except Exception as error:  # no such file, no network, a state dict, TorchScript, ...
            message = " ".join(str(error).split()).rstrip(".")
            raise UsageError(
                f"Ultralytics cannot load {spec}: {message}; serve a module of your own as "
                "file.py:FUNCTION"
            ) from error
        if self._model.task not in _TASKS:
            raise UsageError(
                f"{self.name} is a model for {self._model.task!r}, which cannot be served; "
                f"supported tasks are {', '.join(_TASKS)}"
            )
        self._options = {key: value for key, value in options.items() if value is not None}
        self._options |= {"device": device, "verbose": False, "save": False}

    def __call__(self, images: list[Image]) -> list[Any]:
        """Return one result per image."""
        if not images:
            return []
        if self._options.get("rect", True):
            return run_grouped(images, lambda image: image.shape, self._run)
        return self._run(images)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None

    def _run(self, images: list[Image]) -> list[Any]:
        import cv2  # a dependency of ultralytics

        turned = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in images]
        found = self._model.predict(turned, **self._options)
        return [_plain(result.cpu().numpy()) for result in found]


def _plain(result: Any) -> dict[str, Any]:
    """Return Ultralytics' `Results` on the host as JSON values."""
    if result.probs is not None:
        return classes(result.probs.data, result.names)
    boxes = result.boxes if result.obb is None else result.obb
    detections = [
        {"box": box, "class": kind, "name": result.names[kind], "confidence": round(sure, 5)}
        for box, sure, kind in zip(
            boxes.xyxy.astype(float).round(2).tolist(),
            boxes.conf.astype(float).tolist(),
            boxes.cls.astype(int).tolist(),
            strict=True,
        )
    ]
    extra: dict[str, Any] = {}
    if result.masks is not None:
        extra["polygon"] = result.masks.xy
    if result.obb is not None:
        extra["polygon"] = result.obb.xyxyxyxy
    if result.keypoints is not None:
        extra["keypoints"] = result.keypoints.data  # x, y and, if the model has it, confidence
    for key, values in extra.items():
        for detection, value in zip(detections, values, strict=True):
            detection[key] = value.astype(float).round(2).tolist()
    return {"detections": detections}
