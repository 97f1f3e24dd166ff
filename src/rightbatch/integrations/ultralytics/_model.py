"""Ultralytics' models as they are (`yolo26n.pt`), a whole batch through one predictor.

Results have the form of the exported files' (`onnx.py`): `detections`, each with a `polygon` where
the model segments or turns boxes, and `keypoints` where it finds poses; or `classes`. An `.onnx`
file is served by `onnx.py`, which needs no ultralytics.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.models.results import run_grouped
from rightbatch.integrations._pixels import Image
from rightbatch.integrations._yolo_outputs import classes

_FAMILIES = ("yolo", "rtdetr")
_TASKS = ("detect", "segment", "pose", "obb", "classify")
_OPTIONS = ("imgsz", "rect", "conf", "iou", "max_det")


def open_model(spec: str, *, device: str | None = None, **options: Any) -> UltralyticsModel | None:
    """The model in a `.pt` file, or a `.yaml`'s with random weights; None for any other spec.

    Raises:
        UsageError: if there is no such model, or it cannot be served.
        MissingExtraError: if ultralytics is not installed.
    """
    path = Path(spec).expanduser()
    if path.suffix not in (".pt", ".yaml", ".yml"):
        return None
    if not path.is_file() and not path.stem.lower().startswith(_FAMILIES):
        raise UsageError(f"there is no file {spec}; looked in {path.resolve().parent}")
    return UltralyticsModel(spec, device=device, **options)


class UltralyticsModel:
    """A model of Ultralytics, in this process.

    Pictures of different shapes are run apart, by shape, since Ultralytics letterboxes those of one
    shape in another way than those of several; with `rect=False` they run together, as squares.

    Args:
        spec: what `ultralytics.YOLO` takes.
        device: as Ultralytics names it; by default the one that it chooses.
        options: of Ultralytics' `predict`: `imgsz`, `rect`, `conf`, `iou`, `max_det`.

    Raises:
        UsageError: if it cannot be served, or there is no such option.
        MissingExtraError: if ultralytics is not installed.
    """

    sizes: tuple[int, ...] | None = None

    def __init__(self, spec: str, *, device: str | None = None, **options: Any) -> None:
        unknown = options.keys() - set(_OPTIONS)
        if unknown:
            raise UsageError(
                f"{spec} has no option {', '.join(sorted(unknown))}; it has {', '.join(_OPTIONS)}"
            )
        if find_spec("ultralytics") is None:
            raise MissingExtraError("ultralytics", "yolo")
        from ultralytics import YOLO

        self.name = Path(spec).name
        try:
            self._model = YOLO(spec)
        except Exception as error:  # no such file, no network, a state dict, TorchScript, ...
            told = " ".join(str(error).split()).rstrip(".")
            raise UsageError(
                f"Ultralytics cannot load {spec}: {told}; a module of your own is served as "
                "file.py:FUNCTION"
            ) from error
        if self._model.task not in _TASKS:
            raise UsageError(
                f"{self.name} is a model for {self._model.task!r}, which is not served; "
                f"served are {', '.join(_TASKS)}"
            )
        self._options = {key: value for key, value in options.items() if value is not None}
        self._options |= {"device": device, "verbose": False, "save": False}

    def __call__(self, images: list[Image]) -> list[Any]:
        """One result for each."""
        if not images:
            return []
        if self._options.get("rect", True):
            return run_grouped(images, lambda image: image.shape, self._run)
        return self._run(images)

    def close(self) -> None:
        """Gives the model's memory back."""
        self._model = None

    def _run(self, images: list[Image]) -> list[Any]:
        import cv2  # Ultralytics brings it

        turned = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in images]
        found = self._model.predict(turned, **self._options)
        return [_plain(result.cpu().numpy()) for result in found]


def _plain(result: Any) -> dict[str, Any]:
    """A `Results` of Ultralytics, on the host, as JSON."""
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
        extra["keypoints"] = result.keypoints.data  # x, y and, where the model says it, how sure
    for key, values in extra.items():
        for detection, value in zip(detections, values, strict=True):
            detection[key] = value.astype(float).round(2).tolist()
    return {"detections": detections}
