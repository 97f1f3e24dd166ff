"""The model that the serving benchmarks run: YOLO26n at 320 pixels, as ONNX of any batch size.

Its weights are random ones of a fixed seed, which cost the same time as trained ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

NAME, IMGSZ, SEED = "yolo26n", 320, 0


def onnx_model(folder: Path) -> Path:
    """The file in `folder`, made where it is not there yet (needs ultralytics and onnx)."""
    path = folder / f"{NAME}-{IMGSZ}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # `nms=False`: the head of YOLO26 that needs no suppression of boxes afterwards
        export(path, f"{NAME}.yaml", imgsz=IMGSZ, dynamic=True, nms=False)
    return path


def export(path: Path, configuration: str, **arguments: object) -> None:
    """A model of Ultralytics with weights of a fixed seed, as the ONNX file `path`."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    import torch
    from ultralytics import YOLO

    torch.manual_seed(SEED)
    model, path = YOLO(configuration), path.resolve()
    # The exporter writes beside the configuration's name, into the folder where it stands.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        made = model.export(format="onnx", simplify=False, **arguments)
        shutil.move(made, path)


if __name__ == "__main__":
    import sys

    print(onnx_model(Path(sys.argv[1])))
