"""Read the metadata of files exported by Ultralytics, and decode their outputs.

It uses only the metadata and the shapes of the outputs, so that a small machine does not need
ultralytics.

Axes: N images, K boxes of an image, A anchors.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import UsageError
from rightbatch.integrations._pixels import Image, Letterbox, Shape, resize, to_gray, write

_TOP = 5  # classes of a classification
_MAX_CANDIDATES = 3000  # boxes of an image, by confidence, that enter the suppression


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file: `task`, class `names`, `imgsz` (height, width), `stride`.

    `has_suppression`: the model outputs final boxes, with an end-to-end head (YOLO26) or exported
    non-maximum suppression. The latter works only for the exported batch size `batch`, whatever the
    shape of the input: results beyond it are empty.
    """

    task: str
    names: dict[int, str]
    imgsz: Shape
    stride: int
    has_suppression: bool
    batch: int | None
    head: str

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> Metadata | None:
        """Parse the metadata of a file; return None if Ultralytics did not export it."""
        if not {"task", "names", "imgsz", "stride"} <= texts.keys():
            return None
        arguments = _literal(texts.get("args", "{}"))
        suppresses = arguments.get("nms") is True
        imgsz = _literal(texts["imgsz"])
        return cls(
            task=texts["task"],
            names={int(key): str(name) for key, name in _literal(texts["names"]).items()},
            imgsz=(imgsz, imgsz) if isinstance(imgsz, int) else (imgsz[0], imgsz[1]),
            stride=int(float(texts["stride"])),
            has_suppression=texts.get("end2end") == "True" or suppresses,
            batch=int(texts.get("batch", 1)) if suppresses else None,
            head=texts.get("head", ""),
        )


class Detector:
    """Detections of an image: `{"detections": [{"box", "class", "name", "confidence"}, ...]}`.

    `box` is x1, y1, x2, y2 in image pixels, rounded to 0.01; sorted by decreasing confidence.

    Args:
        metadata: of the file.
        imgsz: (height, width) that images are letterboxed to.
        rect: pad to a multiple of the stride only, instead of to `imgsz`.
        conf: confidence threshold.
        iou: IoU threshold for non-maximum suppression.
        max_det: the most detections per image.
    """

    def __init__(
        self,
        metadata: Metadata,
        imgsz: Shape,
        *,
        rect: bool,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> None:
        self._metadata, self._imgsz = metadata, imgsz
        self._stride = metadata.stride if rect else None
        self._conf, self._iou, self._max_det = conf, iou, max_det

    def shape_of(self, image: Image) -> Shape:
        return self._letterbox(image).canvas

    def write(self, image: Image, out_HWC: NDArray[Any]) -> None:
        self._letterbox(image).write(image, out_HWC)

    def results(self, outputs: list[NDArray[Any]], images: list[Image]) -> list[Any]:
        found = outputs[0]
        width = 4 + len(self._metadata.names)
        if self._metadata.has_suppression and found.ndim == 3 and found.shape[2] == 6:
            rows = [boxes[boxes[:, 4] > self._conf][: self._max_det] for boxes in found]
        elif found.ndim == 3 and found.shape[1] == width:
            rows = suppress(found, self._conf, self._iou, self._max_det)
        else:
            raise UsageError(
                f"unsupported output {found.shape} of this {self._metadata.head or 'model'}; "
                f"expected N×K×6 or N×{width}×A; use the .pt file with ultralytics"
            )
        return [self._to_result(*pair) for pair in zip(rows, images, strict=True)]

    def _to_result(self, rows_K6: NDArray[Any], image: Image) -> dict[str, Any]:
        boxes = self._letterbox(image).to_original(rows_K6[:, :4].astype(np.float64))
        names = self._metadata.names
        detections = [
            {"box": box, "class": kind, "name": names.get(kind, str(kind)), "confidence": sure}
            for box, sure, kind in zip(
                boxes.round(2).tolist(),
                rows_K6[:, 4].astype(np.float64).round(5).tolist(),
                rows_K6[:, 5].astype(int).tolist(),
                strict=True,
            )
        ]
        return {"detections": detections}

    def _letterbox(self, image: Image) -> Letterbox:
        height, width = image.shape[:2]
        return Letterbox.of((height, width), self._imgsz, self._stride)


class Classifier:
    """Classes of an image: `{"classes": [{"class", "name", "confidence"}, ...]}`, the top five.

    Images are resized by their shorter side and centre-cropped with Pillow, as in Ultralytics;
    OpenCV's filter differs.
    """

    def __init__(self, metadata: Metadata, imgsz: Shape) -> None:
        self._metadata, self._imgsz = metadata, imgsz

    def shape_of(self, image: Image) -> Shape:
        return self._imgsz

    def write(self, image: Image, out_HWC: NDArray[Any]) -> None:
        write(_center_crop(image, self._imgsz), out_HWC)

    def results(self, outputs: list[NDArray[Any]], images: list[Image]) -> list[Any]:
        return [classes(row, self._metadata.names) for row in outputs[0]]


class RawOutputs:
    """The outputs of a model without metadata, as a list of arrays for each image.

    Images are resized to a fixed input shape, without keeping the aspect ratio; with a dynamic
    shape they stay as they are. Float inputs are 0 to 1, minus `mean`, divided by `std`, by
    channel; uint8 inputs are unchanged.
    """

    def __init__(
        self,
        shape: tuple[int | None, int | None],
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        self._shape = shape
        self._mean = np.array(mean or (0.0,), np.float32)
        self._std = np.array(std or (1.0,), np.float32)
        self._is_normalized = bool(mean or std)

    def shape_of(self, image: Image) -> Shape:
        height, width = self._shape
        return height or image.shape[0], width or image.shape[1]

    def write(self, image: Image, out_HWC: NDArray[Any]) -> None:
        resized = resize(image, self.shape_of(image))
        write(to_gray(resized) if out_HWC.shape[2] == 1 else resized, out_HWC)
        if self._is_normalized:
            out_HWC -= self._mean.astype(out_HWC.dtype)
            out_HWC /= self._std.astype(out_HWC.dtype)

    def results(self, outputs: list[NDArray[Any]], images: list[Image]) -> list[Any]:
        return [list(row) for row in zip(*outputs, strict=True)]


def classes(confidences: NDArray[Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Return the five classes of highest confidence."""
    best = np.argsort(-confidences, kind="stable")[:_TOP].tolist()
    return {
        "classes": [
            {
                "class": kind,
                "name": names.get(kind, str(kind)),
                "confidence": round(float(confidences[kind]), 5),
            }
            for kind in best
        ]
    }


def suppress(
    output: NDArray[Any], conf: float, iou: float, most: int
) -> list[NDArray[np.floating[Any]]]:
    """Apply greedy non-maximum suppression by class, to all images of a batch at once.

    Each round keeps the box of highest confidence in every image and removes the boxes of its class
    that overlap it by more than `iou`.

    Args:
        output: N×(4+classes)×A; the first four are the box's centre, width and height.
        conf: confidence threshold.
        iou: IoU threshold.
        most: the most boxes per image.

    Returns:
        The boxes of each image by decreasing confidence: K×6, corners, confidence and class.
    """
    sure_NA = output[:, 4:].max(axis=1)
    candidates = [_candidates(*pair, conf) for pair in zip(output, sure_NA, strict=True)]
    count, longest = len(candidates), max((len(one) for one in candidates), default=0)
    boxes_NK6 = np.zeros((count, longest, 6), np.float32)
    is_open_NK = np.zeros((count, longest), bool)
    for image, one in enumerate(candidates):
        boxes_NK6[image, : len(one)] = one
        is_open_NK[image, : len(one)] = True
    corners_N4K = np.ascontiguousarray(boxes_NK6[:, :, :4].transpose(0, 2, 1))
    kinds_NK = np.ascontiguousarray(boxes_NK6[:, :, 5])
    x1, y1, x2, y2 = corners_N4K.transpose(1, 0, 2)
    area_NK = (x2 - x1).clip(0) * (y2 - y1).clip(0)
    kept: list[list[int]] = [[] for _ in candidates]
    images = np.arange(count)
    for _ in range(min(most, longest)):
        first = is_open_NK.argmax(axis=1)  # boxes are sorted by confidence
        has_one = is_open_NK[images, first]
        if not has_one.any():
            break
        for image in images[has_one].tolist():
            kept[image].append(int(first[image]))
        a1, b1, a2, b2 = corners_N4K[images, :, first].T[..., None]
        wide = (np.minimum(x2, a2) - np.maximum(x1, a1)).clip(0)
        high = (np.minimum(y2, b2) - np.maximum(y1, b1)).clip(0)
        shared_NK = wide * high
        union_NK = area_NK + area_NK[images, first][:, None] - shared_NK
        is_same = kinds_NK == kinds_NK[images, first][:, None]
        is_open_NK &= ~(is_same & (shared_NK > iou * union_NK))
        is_open_NK[images, first] = False
    return [boxes[places] for boxes, places in zip(boxes_NK6, kept, strict=True)]


def _candidates(output: NDArray[Any], sure_A: NDArray[Any], conf: float) -> NDArray[np.float32]:
    """Return the boxes of an image above the threshold, by decreasing confidence: K×6."""
    places = np.flatnonzero(sure_A > conf)
    places = places[np.argsort(-sure_A[places], kind="stable")][:_MAX_CANDIDATES]
    chosen = output[:, places].astype(np.float32)
    half = chosen[2:4] / 2
    corners = (chosen[:2] - half, chosen[:2] + half)
    kinds = chosen[4:].argmax(axis=0).astype(np.float32)
    return np.concatenate((*corners, sure_A[places][None], kinds[None])).T


def _center_crop(image: Image, shape: Shape) -> Image:
    """Resize by the shorter side (or to the shape, if it is not square) and crop the centre."""
    from PIL import Image as Pillow

    height, width = image.shape[:2]
    if shape[0] == shape[1]:
        short = min(height, width)
        height, width = (int(shape[0] * side / short) for side in (height, width))
    else:
        height, width = shape
    picture = Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR)
    top, left = round((height - shape[0]) / 2), round((width - shape[1]) / 2)
    return np.asarray(picture)[top : top + shape[0], left : left + shape[1]]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {}
