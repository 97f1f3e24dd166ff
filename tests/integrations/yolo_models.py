"""Models of Ultralytics that find something untrained, pictures for them, and an oracle."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")


def tiny(folder: Path) -> Path:
    """The file of the smallest detector, for three classes."""
    from benchmarks.zoo_ultralytics import configuration  # needs Pillow, as ultralytics does

    path = folder / "tiny.yaml"
    path.write_text(configuration("detect", classes=3))
    return path


def pictures(*shapes: tuple[int, int]) -> list[Image]:
    """Coloured squares of two sizes; no two alike, and all of the same kind."""
    random = np.random.default_rng(0)

    def squares(height: int, width: int, side: int) -> NDArray[np.uint8]:
        colours = random.integers(0, 128, (height // side + 1, width // side + 1, 3), np.uint8)
        return colours.repeat(side, 0).repeat(side, 1)[:height, :width]

    return [squares(*shape, 20) + squares(*shape, 4) for shape in shapes]


def lively(configuration: str) -> Any:
    """A `YOLO` with random weights of a fixed seed, whose boxes and classes are many.

    What its last layers say of real pictures is stretched until places and classes differ: without
    training they all say the same.
    """
    import torch
    from ultralytics import YOLO
    from ultralytics.data.augment import LetterBox

    torch.manual_seed(0)
    made = YOLO(configuration)
    head = made.model.model[-1]
    if made.task == "classify":
        wanted = {head.linear: (0.0, 2.0)}
    else:
        kinds = {"cv2": (2.0, 0.7), "cv3": (-4.0, 0.7)}  # distances, classes
        wanted = {
            branch[-1]: kinds[name.removeprefix("one2one_")]
            for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3")
            for branch in getattr(head, name)
        }
    fit = LetterBox((160, 160))
    images = [
        fit(image=one) for one in pictures(*[(90, 160), (120, 160), (160, 150), (61, 90)] * 8)
    ]
    seen = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        made.model.train()  # both heads answer
        for layer in made.model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0  # what it sees now is what it will expect
        hooks = [layer.register_forward_hook(_stretch(*to)) for layer, to in wanted.items()]
        made.model(seen)
        for hook in hooks:
            hook.remove()
        made.model.eval()
    return made


def _stretch(mean: float, deviation: float) -> Any:
    def hook(layer: Any, inputs: Any, output: Any) -> None:
        axes = [axis for axis in range(output.ndim) if axis != 1]
        gain = deviation / output.std(axes)
        layer.weight.mul_(gain.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(mean + (layer.bias - output.mean(axes)) * gain)

    return hook


def export(model: Any, path: Path, **arguments: Any) -> Path:
    """As ONNX; what the exporter says of itself is of no interest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(path.parent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Path(model.export(format="onnx", simplify=False, verbose=False, **arguments))
        return made.resolve().replace(path)


def ultralytics_own(path: Path, image: Image, batch: int = 1, **arguments: Any) -> Any:
    from ultralytics import YOLO

    images = [image[..., ::-1].copy()] * batch
    return YOLO(path).predict(images, verbose=False, save=False, **arguments)[0]


def is_same_detections(one: dict[str, Any], other: dict[str, Any], conf: float) -> bool:
    """Whether each detection of one result above `conf` is in the other, in any order.

    Kernels for other batch sizes round otherwise: equal confidences may change places, and a
    detection at the threshold may come or go. 0.01 is ten times what was seen.
    """
    others = list(other["detections"])
    alone = []
    for mine in one["detections"]:
        same = [
            theirs
            for theirs in others
            if theirs["class"] == mine["class"]
            and abs(theirs["confidence"] - mine["confidence"]) < 0.01
            and np.abs(np.subtract(theirs["box"], mine["box"])).max() < 1
        ]
        if same:
            others.remove(same[0])
        else:
            alone.append(mine)
    return all(each["confidence"] < conf + 0.01 for each in alone + others)


def assert_same_detections(mine: dict[str, Any], reference: Any) -> None:
    """Each of one is one of the other: those that are equally sure may come in any order."""
    theirs = [tuple(row) for row in reference.boxes.data.tolist()]
    assert len(mine["detections"]) == len(theirs)
    for one in mine["detections"]:
        same = [
            row
            for row in theirs
            if row[5] == one["class"]
            and abs(row[4] - one["confidence"]) < 1e-3
            and np.abs(np.subtract(row[:4], one["box"])).max() < 1
        ]
        assert same, one
        theirs.remove(same[0])
        assert one["name"] == reference.names[one["class"]]
