"""Six workloads of different kinds, each as small as shows its kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rightbatch._workload.factory import FileFactory
from rightbatch.integrations.ultralytics import from_spec

NAMES = ("resnet18", "vit_tiny", "characters", "unet3d", "yolo26n", "bert")


def data_folder() -> Path:
    """Where the real data lies: `RIGHTBATCH_DATA`, or `shared/data` beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RIGHTBATCH_DATA", beside)).resolve()
    if not folder.is_dir():
        raise SystemExit(
            f"no data at {folder}; set RIGHTBATCH_DATA to a folder with blood-cells/ (YOLO layout) "
            "and tinyshakespeare.txt"
        )
    return folder


def factory(name: str, scratch: Path) -> Any:
    """The factory called `name`; `scratch` is a folder for what it has to write."""
    os.environ["RIGHTBATCH_DATA"] = str(data_folder())
    if name == "yolo26n":
        return from_spec("yolo26n.yaml", data=_blood_cells(scratch), imgsz=160)
    return FileFactory(Path(__file__).parent / f"{name}.py", "workload")


def _blood_cells(scratch: Path) -> str:
    """The data set's description with an absolute path, which the one beside the data lacks."""
    folder = data_folder() / "blood-cells"
    lines = (folder / "data.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("path:")]
    written = scratch / "blood-cells.yaml"
    written.write_text("\n".join([*kept, f"path: {folder}\n"]))
    return str(written)
