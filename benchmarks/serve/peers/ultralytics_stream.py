"""Ultralytics' own loop over many streams: `predict("cameras.streams", stream=True)`.

All of it is theirs: a thread for each stream that keeps the newest frame, the loop that waits until
every stream has one, the batch of all of them, pre- and post-processing. Only OpenCV's decoder is
replaced, by one that has a frame at each moment of the schedule, so that decoding is left out for
Ultralytics as it is for the others; and the ONNX Runtime session has the same settings as theirs.
The number of a frame is written into its first pixels, by which its result is known again.

Runs in an environment with ultralytics. Reads a line of JSON for each load, writes one for each
result.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

import cv2
import numpy as np
import onnxruntime
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from benchmarks.serve.peers.worker import IMGSZ, pictures, session_options
from rightbatch._serve.engine.service_times import quantile
from rightbatch._serve.load.arrivals import schedule
from rightbatch._serve.load.early_stopping import SHARE

_AROUND = 1.5  # seconds of frames before and after those that count: threads start, all runs once


class Schedule:
    """The load that runs now: of each camera its frames' numbers and moments; -1 does not count."""

    def __init__(self, arrivals: list[tuple[float, str]], per: float) -> None:
        self.moments = [at for at, _ in arrivals]
        self.per = per
        self.start = time.monotonic() + _AROUND
        self.lags: list[float] = []
        self.images = pictures()
        self.frames: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for number, (at, camera) in enumerate(arrivals):
            self.frames[camera].append((at, number))
        for frames in self.frames.values():
            first, last = frames[0][0], frames[-1][0]
            steps = [step / per for step in range(1, round(_AROUND * per) + 1)]
            frames[:0] = [(first - step, -1) for step in reversed(steps)]
            frames += [(last + step, -1) for step in steps]


class Camera:
    """Stands for `cv2.VideoCapture`: `grab` returns at the moment of the next frame."""

    schedule: Schedule
    tells_rate: bool

    def __init__(self, url: str) -> None:
        self._frames = iter(self.schedule.frames[url.rpartition("/")[2]])
        self._number = -1
        self._opened = True

    def isOpened(self) -> bool:
        return self._opened

    def get(self, what: int) -> float:
        if what == cv2.CAP_PROP_FPS:
            return self.schedule.per if self.tells_rate else 0.0
        return float(IMGSZ) if what != cv2.CAP_PROP_FRAME_COUNT else 0.0

    def grab(self) -> bool:
        at, self._number = next(self._frames, (None, -1))
        if at is None:
            self._opened = False
            return False
        at += self.schedule.start
        if (ahead := at - time.monotonic()) > 0:
            time.sleep(ahead)
        if self._number >= 0:
            self.schedule.lags.append(time.monotonic() - at)
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        images = self.schedule.images
        image = images[self._number % len(images)].copy()
        image[0, 0] = list((self._number + 1).to_bytes(3, "big"))
        return True, image

    def read(self) -> tuple[bool, np.ndarray]:
        """A frame that does not count: streams are opened by this, one after the other."""
        return self.retrieve()

    def release(self) -> None:
        self._opened = False


def run(model: YOLO, asked: dict[str, Any]) -> dict[str, Any]:
    """One load; stops when it is certain that too much is late."""
    arrivals = schedule("cameras", asked["rate"], asked["seconds"], asked["seed"], asked["per"])
    now = Camera.schedule = Schedule(arrivals, asked["per"])
    Camera.tells_rate = asked["tells_rate"]
    target, bearable = asked["target"], (1 - SHARE) * len(arrivals)
    latencies: dict[int, float] = {}
    in_time = 0
    with tempfile.NamedTemporaryFile("w", suffix=".streams") as file:
        file.write("\n".join(f"rtsp://rig/{camera}" for camera in now.frames))
        file.flush()
        results = model.predict(
            file.name, stream=True, imgsz=IMGSZ, verbose=False, save=False, device="cpu"
        )
        for result in results:
            number = int.from_bytes(result.orig_img[0, 0].tobytes(), "big") - 1
            elapsed = time.monotonic() - now.start
            if number >= 0:
                latencies[number] = elapsed - now.moments[number]
                in_time += latencies[number] <= target
            due = bisect_right(now.moments, elapsed - target)
            if due - in_time > bearable:
                break
            if elapsed > now.moments[-1] + 1.0:
                due = len(arrivals)
                break
        results.close()
    return {
        "seconds": now.moments[due - 1] + now.moments[-1] / len(arrivals) if due else 0.0,
        "scheduled": len(arrivals),
        "offered": due,
        "dropped": {"replaced": lost} if (lost := due - sum(n < due for n in latencies)) else {},
        "lag": quantile(now.lags, SHARE) if now.lags else 0.0,
        "latencies": [latency for number, latency in latencies.items() if number < due],
    }


def main() -> None:
    say, sys.stdout = sys.stdout, sys.stderr  # Ultralytics prints
    LOGGER.setLevel("ERROR")
    cv2.VideoCapture = Camera
    session = onnxruntime.InferenceSession

    def with_options(path: str, *_: Any, providers: Any = None, **__: Any) -> Any:
        return session(path, session_options(), providers=["CPUExecutionProvider"])

    onnxruntime.InferenceSession = with_options
    model = YOLO(sys.argv[1], task="detect")
    model.predict(pictures(1)[0], imgsz=IMGSZ, verbose=False, device="cpu")
    print(json.dumps({"ready": True}), file=say, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, json.loads(line))), file=say, flush=True)


if __name__ == "__main__":
    main()
