"""`python -m benchmarks.zoo_ultralytics`: every task of Ultralytics with every verb.

Each kind is a tiny data set, a model that takes a second to train, and arguments of `YOLO.train`. A
cell is one verb by the command line, as a user types it. It is `right` if the answer is complete,
`refused` with exit code 2, and else `wrong`; in every cell the user's files are hashed before and
after. The table is stored in `results/zoo-ultralytics.json`; `--only KIND,... --verbs fit,train`
runs some cells, and keeps what is stored of the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._record import RESULTS, save, say
from rightbatch._cli.options import literal

IMAGES, VALIDATION, SIDE = 8, 4, 64

_HEADS = {
    "detect": "[[2, 3], 1, Detect, [nc]]",
    "segment": "[[2, 3], 1, Segment26, [nc, 4, 8]]",
    "pose": "[[2, 3], 1, Pose26, [nc, kpt_shape]]",
    "obb": "[[2, 3], 1, OBB26, [nc, 1]]",
    "classify": "[-1, 1, Classify, [nc]]",
    "semantic": "[[2, 3], 1, SemanticSegment, [nc]]",
    "depth": "[[1, 2, 3], 1, Depth, [8]]",
    "rtdetr": "[[2, 3], 1, RTDETRDecoder, [nc, 32, 8, 2, 2, 1, 32]]",
}
_TINY = """\
nc: {classes}
kpt_shape: [17, 3]
end2end: True
reg_max: 1
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - {head}
"""


@dataclass(frozen=True)
class Kind:
    """A data set, a model and arguments; `refused` has the verbs that cannot answer it."""

    task: str = "detect"
    data: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: bool = False
    folder: str = "user"
    refused: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "detect": Kind(),
    "segment": Kind("segment"),
    "pose": Kind("pose"),
    "obb": Kind("obb"),
    "classify": Kind("classify"),
    "semantic masks": Kind("semantic"),
    "semantic polygons": Kind("semantic", {"masks": False}),
    "depth": Kind("depth"),
    "rtdetr": Kind("rtdetr"),
    "checkpoint with other classes": Kind(checkpoint=True),
    "checkpoint with other keypoints": Kind("pose", checkpoint=True),
    "checkpoint of a classifier": Kind("classify", checkpoint=True),
    "checkpoint with other channels": Kind(data={"channels": 1}, checkpoint=True),
    "gray images": Kind(data={"gray": True}),
    "16 bits": Kind(data={"bits": 16}),
    "five channels": Kind(data={"channels": 5}),
    "five pictures": Kind(data={"images": 5, "validation": 2}),
    "seven pictures at 32": Kind(data={"images": 7, "validation": 3}, arguments={"imgsz": 32}),
    "images without labels": Kind(data={"unlabelled": 4}),
    "telephone's pictures": Kind(data={"suffix": "jpg", "appended": b"preview"}),
    "classified pictures of a telephone": Kind(
        "classify", {"suffix": "jpg", "appended": b"preview"}
    ),
    "arrays of one's own beside the images": Kind(data={"arrays": True}),
    "spaces and umlauts": Kind(folder="eine Übung/datos ñ 数据"),
    "relative paths": Kind(data={"relative": True}),
    "classify with test only": Kind("classify", {"evaluated": "test"}),
    "classify without val": Kind(
        "classify",
        {"evaluated": None},
        refused=dict.fromkeys(("fit", "inference", "predict", "tune", "train", "study"), "val"),
    ),
    "classify without splits": Kind(
        "classify",
        {"splits": False},
        refused=dict.fromkeys(("fit", "inference", "predict", "tune", "train", "study"), "train"),
    ),
    "rect": Kind(data={"shapes": ((64, 48), (40, 64), (64, 64))}, arguments={"rect": True}),
    "one mask per object": Kind("segment", arguments={"overlap_mask": False}),
    "save_json": Kind(arguments={"save_json": True}),
    "save_json of poses": Kind("pose", arguments={"save_json": True}),
    "save_txt": Kind(arguments={"save_txt": True}),
    "cache in memory": Kind(arguments={"cache": "ram"}),
    "cache on the disk": Kind(arguments={"cache": "disk"}),
    "single_cls": Kind(arguments={"single_cls": True}),
    "multi_scale": Kind(arguments={"multi_scale": 0.5}),
    "freeze": Kind(arguments={"freeze": 2}),
    "close_mosaic": Kind(arguments={"close_mosaic": 1}),
    "no mosaic": Kind(arguments={"mosaic": 0.0, "mixup": 0.5}),
    "fraction": Kind(arguments={"fraction": 0.5}),
    "classes": Kind(arguments={"classes": "[0]"}),
    "no amp": Kind(arguments={"amp": False}),
    "amp bf16": Kind(arguments={"amp": "bf16"}),
    "AdamW": Kind(arguments={"optimizer": "AdamW", "lr0": 0.001}),
    "RMSProp": Kind(
        arguments={"optimizer": "RMSProp", "lr0": 0.001}, refused={"study": "optimizer"}
    ),
    "split": Kind(arguments={"split": "train"}),
    "cls_pw": Kind(arguments={"cls_pw": 0.5}),
    "an unknown argument": Kind(
        arguments={"mosiac": 0.5},
        refused=dict.fromkeys(("fit", "inference", "predict", "tune", "train", "study"), "mosaic"),
    ),
    "a value out of range": Kind(
        arguments={"mosaic": 5},
        refused=dict.fromkeys(("fit", "inference", "predict", "tune", "train", "study"), "mosaic"),
    ),
}


def configuration(task: str, classes: int) -> str:
    """The configuration of a model with YOLO26's head, or RT-DETR's, and hardly a backbone.

    Ultralytics builds, trains and saves a detector of it in a third of the time of yolo26n.
    """
    return _TINY.format(classes=classes, head=_HEADS[task])


def write_model(kind: Kind, folder: Path) -> Path:
    """Write the kind's model file, and return its path; a checkpoint is for other data."""
    name = "rtdetr" if kind.task == "rtdetr" else "yolo"
    path = folder / f"{name}-tiny-{kind.task}.yaml"
    path.write_text(configuration(kind.task, classes=80))
    if not kind.checkpoint:
        return path
    from ultralytics import YOLO

    YOLO(path).save(path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def write_data(kind: Kind, folder: Path) -> Path:
    """Write the kind's data set into `folder`, and return the argument for `data`."""
    folder.mkdir(parents=True)
    if kind.task == "classify":
        return _write_classes(folder, **kind.data)
    return _write_labels(kind.task, folder, **kind.data)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _write_classes(
    folder: Path,
    *,
    suffix: str = "png",
    appended: bytes = b"",
    evaluated: str | None = "val",
    splits: bool = True,
) -> Path:
    random = np.random.default_rng(0)
    parts = {"train": IMAGES} | ({evaluated: VALIDATION} if evaluated else {})
    for part, number in parts.items() if splits else [("", IMAGES)]:
        for shade, kind in ((40, "good"), (150, "scratched")):
            (folder / part / kind).mkdir(parents=True)
            for index in range(number // 2):
                pixels = random.integers(shade, shade + 60, (72, 80, 3), dtype=np.uint8)
                path = folder / part / kind / f"{index}.{suffix}"
                Image.fromarray(pixels).save(path)
                path.write_bytes(path.read_bytes() + appended)
    return folder


def _write_labels(
    task: str,
    folder: Path,
    *,
    images: int = IMAGES,
    validation: int = VALIDATION,
    shapes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),),
    channels: int = 3,
    gray: bool = False,
    bits: int = 8,
    suffix: str = "png",
    appended: bytes = b"",
    unlabelled: int = 0,
    masks: bool = True,
    arrays: bool = False,
    relative: bool = False,
) -> Path:
    random = np.random.default_rng(0)
    for part, number in (("train", images), ("val", validation)):
        for kind in ("images", "labels", "masks", "depth"):
            if kind in ("images", "labels") or kind == _companion(task, masks):
                (folder / kind / part).mkdir(parents=True)
        for index in range(number):
            shape = shapes[index % len(shapes)]
            pixels, lines, mask = _picture(random, task, shape)
            path = folder / "images" / part / f"{index:03d}.{suffix}"
            _save_image(path, pixels, channels, gray=gray, bits=bits)
            file = next(path.parent.glob(f"{index:03d}.*"))
            file.write_bytes(file.read_bytes() + appended)
            if index >= unlabelled:
                label = folder / "labels" / part / f"{index:03d}.txt"
                label.write_text("".join(f"{line}\n" for line in lines))
            if _companion(task, masks) == "masks":
                Image.fromarray(mask).save(folder / "masks" / part / f"{index:03d}.png")
            if task == "depth":
                depth = random.uniform(1, 9, shape).astype(np.float32)
                np.save(folder / "depth" / part / f"{index:03d}.npy", depth)
            if arrays:  # what else a user keeps there; Ultralytics takes them for its cache
                np.save(path.with_suffix(".npy"), random.random(5))
    table = folder / "data.yaml"
    where = "" if relative else f"path: {folder}\n"
    more = f"channels: {channels}\n" if channels != 3 else ""
    more += "kpt_shape: [2, 3]\n" if task == "pose" else ""
    text = f"{where}train: images/train\nval: images/val\n{more}names:\n  0: bright\n  1: other\n"
    table.write_text(text, encoding="utf-8")
    return table


def _companion(task: str, masks: bool) -> str:
    if task == "semantic" and masks:
        return "masks"
    return "depth" if task == "depth" else ""


def _picture(
    random: np.random.Generator, task: str, shape: tuple[int, int]
) -> tuple[Any, list[str], Any]:
    """Return pixels, label lines and a mask of two bright rectangles."""
    height, width = shape
    pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(shape, np.uint8)
    lines = []
    for kind in (0, 1):
        w, h = random.uniform(0.2, 0.4, 2)
        x, y = random.uniform(w / 2, 1 - w / 2), random.uniform(h / 2, 1 - h / 2)
        left, top = int((x - w / 2) * width), int((y - h / 2) * height)
        region = slice(top, top + int(h * height)), slice(left, left + int(w * width))
        pixels[region], mask[region] = 230, 1
        corners = [x - w / 2, y - h / 2, x + w / 2, y - h / 2]
        corners += [x + w / 2, y + h / 2, x - w / 2, y + h / 2]
        box = f"{kind} {x:.4f} {y:.4f} {w:.4f} {h:.4f}"
        if task in ("segment", "obb", "semantic"):
            lines.append(f"{kind} " + " ".join(f"{value:.4f}" for value in corners))
        elif task == "pose":
            lines.append(f"{box} {x:.4f} {y:.4f} 2 {x:.4f} {y:.4f} 1")
        else:
            lines.append(box)
    return pixels, lines, mask


def _save_image(path: Path, pixels: Any, channels: int, *, gray: bool, bits: int) -> None:
    if channels not in (1, 3):
        import cv2

        layers = [np.stack([pixels[..., i % 3]] * 1, -1) for i in range(channels)]
        flat = [np.ascontiguousarray(layer[..., 0]) for layer in layers]
        if not cv2.imwritemulti(str(path.with_suffix(".tiff")), flat):
            raise OSError(f"cannot write {path}")
        return
    if bits == 16:
        Image.fromarray((pixels[..., 0].astype(np.uint16)) << 8).save(path)
        return
    Image.fromarray(pixels[..., 0] if gray or channels == 1 else pixels).save(path)


_DEVICE = ("--device", "cpu")
VERBS: dict[str, Callable[[Path], list[str]]] = {
    "fit": lambda out: ["fit", "--memory", "2GiB", "--max-batch", "4", *_DEVICE],
    "inference": lambda out: [
        *("fit", "--inference", "--memory", "2GiB", "--max-batch", "4", *_DEVICE)
    ],
    "predict": lambda out: ["predict", "--batch", "4", "--memory", "8GiB", "--no-remedies"],
    "tune": lambda out: ["tune", "--budget", "10s", "--max-batch", "4", *_DEVICE],
    "train": lambda out: ["train", "--batch", "4", "--epochs", "1", "--out", str(out), *_DEVICE],
    "study": lambda out: [
        *("study", "--batches", "2,4", "--seeds", "1", "--epochs", "1", "--out", str(out), *_DEVICE)
    ],
}
INSTALLED = {"install -1": -1, "install 0.7": 0.7}
_SCRIPT = """\
import sys
import rightbatch.integrations.ultralytics as measured
measured.install(strict=True)
from ultralytics import YOLO
model = YOLO({model!r})
model.train(data={data!r}, batch={batch}, epochs=1, device="cpu", plots=False, project={out!r},
            workers=0, **{arguments!r})
print("TRAINED", model.trainer.args.batch)
"""


@dataclass(frozen=True)
class Cell:
    """What one verb did with one kind; `changed` are the user's files that are not as before."""

    outcome: str
    exit_code: int
    seconds: float
    changed: tuple[str, ...]
    message: str

    @property
    def is_right(self) -> bool:
        return self.outcome in ("right", "refused") and not self.changed


def run(kind: Kind, verb: str, folder: Path) -> Cell:
    """Run one cell in a folder of its own."""
    user, out = folder / kind.folder, folder / "out"
    model_folder = folder / "model"
    model_folder.mkdir(parents=True)
    model, data = write_model(kind, model_folder), write_data(kind, user)
    arguments = {"imgsz": SIDE} | dict(kind.arguments)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {
        "YOLO_CONFIG_DIR": str(folder / "settings"),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    (folder / "settings").mkdir()
    if verb in INSTALLED:
        text = _SCRIPT.format(
            model=str(model),
            data=str(data),
            batch=INSTALLED[verb],
            out=str(out),
            arguments={key: literal(str(value)) for key, value in arguments.items()},
        )
        command = [sys.executable, "-c", text]
    else:
        settings = [f"{key}={value}" for key, value in arguments.items()]
        own = VERBS[verb](out)
        command = [sys.executable, "-m", "rightbatch", own[0], str(model), f"data={data}"]
        command += [*settings, *own[1:], "--json"]
    before, started = hashes(user), time.perf_counter()
    done = subprocess.run(
        command,
        cwd=user if kind.data.get("relative") else folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    seconds = time.perf_counter() - started
    after = hashes(user)
    changed = tuple(sorted(name for name in before | after if before.get(name) != after.get(name)))
    if kind.arguments.get("cache") == "disk" and verb in ("train", *INSTALLED):
        changed = tuple(name for name in changed if not name.endswith(".npy"))  # asked for
    if verb in INSTALLED:  # the script's own training, after the probes, is Ultralytics'
        changed = tuple(name for name in changed if Path(name).suffix not in (".cache", ".jpg"))
    return Cell(_outcome(verb, kind, done), done.returncode, seconds, changed, _last(done))


def _outcome(verb: str, kind: Kind, done: subprocess.CompletedProcess[str]) -> str:
    if verb in kind.refused:
        named = kind.refused[verb] in done.stderr
        return "refused" if done.returncode == 2 and named else "wrong"
    if done.returncode != 0:
        return "wrong"
    if verb in INSTALLED:
        return "right" if "TRAINED" in done.stdout else "wrong"
    document = json.loads(done.stdout)
    if verb == "study":
        finished = all(run["status"] == "finished" for run in document["runs"])
        return "right" if finished else "wrong"
    complete = {
        "fit": ("batch_size", "peak_bytes", "evaluation_batch_size"),
        "inference": ("batch_size", "peak_bytes"),
        "predict": ("largest_batch_size", "allocated_peak_bytes"),
        "tune": ("batch_size", "micro_batch_size", "expected", "reason"),
        "train": ("batch_size", "steps", "metrics"),
    }[verb]
    return "right" if all(document[name] for name in complete) else "wrong"


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1][:400] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen cells, and store each; those that are stored already are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    every = (*VERBS, *INSTALLED)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--verbs", default=",".join(every), help="verbs, separated by commas")
    chosen = parser.parse_args(arguments)
    path = RESULTS / "zoo-ultralytics.json"
    stored: dict[str, dict[str, Any]] = (
        json.loads(path.read_text())["kinds"] if path.exists() else {}
    )
    wrong = 0
    for verb in chosen.verbs.split(","):
        for name in chosen.only.split(","):
            kind = KINDS[name]
            if verb in INSTALLED and kind.refused:
                continue  # Ultralytics' own trainer refuses before a measurement
            with tempfile.TemporaryDirectory() as folder:
                cell = run(kind, verb, Path(folder).resolve())
            wrong += not cell.is_right
            stored.setdefault(name, {})[verb] = vars(cell)
            sign = (
                cell.outcome if cell.is_right else f"{cell.outcome}: {cell.message} {cell.changed}"
            )
            say(f"{name}, {verb}: {sign} ({cell.seconds:.0f} s)")
            save("zoo-ultralytics", {"kinds": stored}, "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
