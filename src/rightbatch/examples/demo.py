"""The main job from beginning to end: `python -m rightbatch.examples.demo`.

Renders a detection data set, finds the largest batch for YOLO26n, chooses the one that learns most
in a second, trains with it, measures how many cameras the model then serves, and shows what it
sees. Everything lands in one folder.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rightbatch._errors import RightbatchError
from rightbatch._units import format_bytes, format_seconds
from rightbatch.examples.parts import CLASSES, render_parts

if TYPE_CHECKING:
    from rightbatch._serve.engine.calibration import Calibration
    from rightbatch._tune import Plan
    from rightbatch.integrations.ultralytics._factory import Trained

MODEL, IMAGE_SIZE, EPOCHS, BUDGET = "yolo26n.yaml", 160, 20, "40s"
LATENCY = "100ms"  # for each picture, where the model is served
# For a training from scratch of some hundred updates; Ultralytics' defaults assume thousands, and
# a mosaic of small defects leaves too little of them at 160 pixels.
RECIPE: dict[str, Any] = {
    "optimizer": "AdamW",
    "lr0": 0.003,
    "cos_lr": True,
    "momentum": 0.9,
    "cls": 1.0,
    "warmup_epochs": 1,
    "warmup_bias_lr": 0.0,
    "mosaic": 0.0,
    "scale": 0.15,
    "translate": 0.05,
    "hsv_s": 0.3,
    "hsv_v": 0.3,
    "flipud": 0.5,
    "cache": "ram",
    "val": False,
    "plots": False,
    "verbose": False,
}
_SHOWN = 12  # pictures on the sheet of detections


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything")
    parser.add_argument("--memory", help="cap the device for a trial, for example 2GiB")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stdout)  # this one, whatever is redirected later
    try:
        run(arguments.out, arguments.memory, arguments.epochs, console)
    except RightbatchError as error:
        console.print(f"rightbatch: {error}", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    return 0


def run(out: Path, memory: str | None, epochs: int, console: Console) -> None:
    """All of it; `memory` caps the device."""
    started = time.perf_counter()
    # Before ultralytics is imported: no downloads, no chatter, and settings of the demo's own.
    os.environ |= {
        "YOLO_OFFLINE": "true",
        "YOLO_VERBOSE": "false",
        "YOLO_CONFIG_DIR": str((out / "settings").resolve()),
    }
    from rightbatch._fit.fit import fit
    from rightbatch._tune import tune
    from rightbatch.integrations.ultralytics._factory import from_spec, without_trackers

    with _bars(console) as bars:
        task = bars.add_task("rendering parts on a conveyor", total=300)
        data = render_parts(
            out / "parts", progress=lambda n, total: bars.update(task, completed=n, total=total)
        )
        bars.update(task, completed=300)
    factory = from_spec(MODEL, data=str(data), imgsz=IMAGE_SIZE, **RECIPE)
    assert factory is not None
    console.print(f"finding the largest batch for {MODEL} at {IMAGE_SIZE} pixels …")
    largest = fit(factory, memory=memory)
    console.print(f"  {largest.batch_size}, in {format_seconds(largest.seconds)}")
    console.print("choosing the size that learns most in a second …")
    plan = tune(factory, largest=largest, memory=memory, epochs=epochs, budget=BUDGET)
    console.print(f"  {plan.batch_size}, in {format_seconds(plan.seconds)}")
    without_trackers()
    # Ultralytics has bars of its own, for every little thing.
    with _bars(console) as bars, redirect_stdout(io.StringIO()):
        task = bars.add_task(f"training at batch size {plan.batch_size}", total=epochs)
        trained = factory.train(
            batch=plan.batch_size,
            epochs=epochs,
            out=out / "train",
            device=None,
            seed=0,
            on_epoch=lambda n: bars.update(task, completed=min(n, epochs)),
        )
    weights = trained.out / "weights" / "best.pt"
    console.print(f"measuring how many cameras it serves within {LATENCY} …")
    served = _serving(weights, data)
    picture = _draw_detections(weights, data, out / "detections.jpg")
    console.print(_card(plan, trained, served, picture, time.perf_counter() - started))


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def _serving(weights: Path, data: Path) -> Calibration:
    """What this machine can do with the model, on a picture that it has not seen."""
    from rightbatch._serve.engine.batcher import Batcher
    from rightbatch._serve.models.open import open_model
    from rightbatch._serve.sources.pictures import load_picture

    first = sorted((data.parent / "images" / "val").iterdir())[0]
    with Batcher(open_model(weights, imgsz=IMAGE_SIZE), LATENCY) as batcher:
        return batcher.calibrate(load_picture(first))


def _card(
    plan: Plan, trained: Trained, served: Calibration, picture: Path, seconds: float
) -> Panel:
    largest = plan.largest
    rate = trained.examples * trained.epochs / trained.seconds
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    enforced = "enforced" if largest.limit_enforced else "not enforced here"
    rows.add_row("largest", f"{largest.batch_size}: {largest.reason}")
    rows.add_row("chosen", f"{plan.batch_size}: {plan.reason}")
    rows.add_row("gradient", str(plan.noise_scale))
    rows.add_row(
        "peak / limit",
        f"{format_bytes(largest.peak_bytes)} at {largest.batch_size} of "
        f"{format_bytes(largest.limit_bytes)} on {largest.device} ({enforced})",
    )
    rows.add_row("speed", f"{rate:.0f} images per second in training")
    rows.add_row("mAP50", f"{trained.metrics['metrics/mAP50(B)']:.3f} on held-out pictures")
    rows.add_row(f"in {LATENCY}", str(served))
    rows.add_row("picture", str(picture))
    return Panel(rows, title=f"the right batch size for {MODEL}, in {format_seconds(seconds)}")


def _draw_detections(weights: Path, data: Path, picture: Path) -> Path:
    """A sheet of validation pictures with what the model detects on them."""
    import cv2
    import numpy as np
    from ultralytics import YOLO

    model = YOLO(weights)
    files = sorted((data.parent / "images" / "val").glob("*.jpg"))[:_SHOWN]
    results = model.predict(files, imgsz=IMAGE_SIZE, conf=0.3, verbose=False)
    tiles = []
    for result in results:
        tile = cv2.resize(result.orig_img, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
        for box, kind, sure in zip(
            result.boxes.xyxy.tolist(), result.boxes.cls.tolist(), result.boxes.conf, strict=True
        ):
            x0, y0, x1, y1 = (round(1.5 * side) for side in box)
            color = _COLORS[int(kind)]
            cv2.rectangle(tile, (x0, y0), (x1, y1), color, 2, cv2.LINE_AA)
            text = f"{CLASSES[int(kind)].replace('_', ' ')} {float(sure):.2f}"
            place = (x0, max(y0 - 5, 12))
            cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)
        tiles.append(tile)
    rows = [np.hstack(tiles[start : start + 4]) for start in range(0, len(tiles), 4)]
    cv2.imwrite(str(picture), np.vstack(rows))
    return picture


# Blue, green, red; told apart by people with any colour vision.
_COLORS = ((0, 165, 255), (255, 200, 60), (80, 80, 255), (120, 220, 60))

if __name__ == "__main__":
    sys.exit(main())
