"""The whole workflow: `python -m rightbatch.examples.demo`.

Renders a detection data set, finds the largest batch for YOLO26n, chooses the one that reaches the
target soonest, trains with it, measures how many cameras the model can serve, and draws its
detections. Writes everything into one folder.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from rightbatch._errors import RightbatchError
from rightbatch._progress import Live
from rightbatch._units import format_bytes, format_seconds
from rightbatch.examples._labels import CLASSES
from rightbatch.examples.parts import render_parts

if TYPE_CHECKING:
    from rightbatch._serve.engine.calibration import Calibration
    from rightbatch._tune import Plan
    from rightbatch.integrations.ultralytics._factory import Trained

MODEL, IMAGE_SIZE, EPOCHS, BUDGET = "yolo26n.yaml", 160, 20, "40s"
# With 240 images and 20 epochs, `tune` chooses at most 17, so that enough updates remain. Sizes up
# to 64 are for comparison; finding the largest of all takes minutes on a CPU.
MAX_BATCH = 64
LATENCY = "100ms"  # of each image when the model is served
# For a training from scratch of a few hundred updates; Ultralytics' defaults assume thousands, and
# a mosaic would make the small defects invisible at 160 pixels.
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
_SHOWN = 12  # images on the sheet of detections


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="output folder")
    parser.add_argument("--memory", help="memory limit of the device, for example 2GiB")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stdout)  # before stdout is redirected
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
    """Run all stages; `memory` is the device's limit, None for all that is free."""
    started_at = time.perf_counter()
    # Must be set before ultralytics is imported: no downloads, no log, separate settings.
    os.environ |= {
        "YOLO_OFFLINE": "true",
        "YOLO_VERBOSE": "false",
        "YOLO_CONFIG_DIR": str((out / "settings").resolve()),
    }
    from rightbatch._fit.fit import fit
    from rightbatch._tune import tune
    from rightbatch.integrations.ultralytics._factory import from_spec, without_trackers

    with _stage(console, "1/5 rendering images of parts on a conveyor", total=300) as stage:
        data = render_parts(out / "parts", progress=stage.count)
    factory = from_spec(MODEL, data=str(data), imgsz=IMAGE_SIZE, **RECIPE)
    assert factory is not None
    with _stage(console, f"2/5 finding the largest batch for {MODEL}, up to {MAX_BATCH}") as stage:
        largest = fit(factory, memory=memory, max_batch=MAX_BATCH)
        stage.result = str(largest.batch_size)
    with _stage(console, "3/5 choosing the batch size that reaches the target soonest") as stage:
        plan = tune(factory, largest=largest, memory=memory, epochs=epochs, budget=BUDGET)
        stage.result = str(plan.batch_size)
    without_trackers()
    with (
        _stage(console, f"4/5 training at batch size {plan.batch_size}", total=epochs) as stage,
        redirect_stdout(io.StringIO()),  # Ultralytics prints progress bars of its own
    ):
        trained = factory.train(
            batch=plan.batch_size,
            epochs=epochs,
            out=out / "train",
            device=None,
            seed=0,
            on_epoch=lambda n: stage.count(min(n, epochs), epochs),
        )
    weights = trained.out / "weights" / "best.pt"
    with _stage(console, f"5/5 measuring how many cameras it can serve within {LATENCY}"):
        served = _calibrate_serving(weights, data)
    picture = _draw_detections(weights, data, out / "detections.jpg")
    console.print(_summary(plan, trained, served, picture, time.perf_counter() - started_at))


class _Stage:
    """A stage of the demo: `count` shows its progress, `result` is printed at its end."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.result = ""

    def count(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        self._live.show(f"{done} of {total}", done)


@contextmanager
def _stage(console: Console, title: str, total: int | None = None) -> Iterator[_Stage]:
    """Print the title, show progress if there is a `total`, then print the result and the time.

    Verbs of rightbatch show their own progress.
    """
    console.print(f"{title} …")
    started_at = time.perf_counter()
    with Live(title, enabled=total is not None, total=total) as live:
        stage = _Stage(live)
        yield stage
    seconds = format_seconds(time.perf_counter() - started_at)
    console.print(f"  {stage.result}, in {seconds}" if stage.result else f"  {seconds}")


def _calibrate_serving(weights: Path, data: Path) -> Calibration:
    """Measure what this machine can serve with the model, on a validation image."""
    from rightbatch._serve.engine.batcher import Batcher
    from rightbatch._serve.models import open_model
    from rightbatch._serve.sources.pictures import load_picture

    first = sorted((data.parent / "images" / "val").iterdir())[0]
    with Batcher(open_model(weights, imgsz=IMAGE_SIZE), LATENCY) as batcher:
        return batcher.calibrate(load_picture(first))


def _summary(
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
    rows.add_row("mAP50", f"{trained.metrics['metrics/mAP50(B)']:.3f} on validation images")
    rows.add_row(f"in {LATENCY}", str(served))
    rows.add_row("picture", str(picture))
    return Panel(rows, title=f"the right batch size for {MODEL}, in {format_seconds(seconds)}")


def _draw_detections(weights: Path, data: Path, picture: Path) -> Path:
    """Draw the model's detections on validation images, and save them as one image."""
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


# Blue, green, red (OpenCV's order); distinguishable with any colour vision.
_COLORS = ((0, 165, 255), (255, 200, 60), (80, 80, 255), (120, 220, 60))

if __name__ == "__main__":
    sys.exit(main())
