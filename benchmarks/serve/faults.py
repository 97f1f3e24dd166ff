"""Eight real RTSP cameras, of which one after the other fails, and what the others notice of it.

`python -m benchmarks.serve.faults [--minutes 10]`. The cameras show films of the conveyor, with
every frame numbered in the picture (`marker`), so that what was lost is counted between what the
cameras sent and the results. They run under GStreamer's RTSP server (`rtsp_server`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks import _record
from benchmarks._record import about, say
from benchmarks.serve import marker
from rightbatch._serve.server import Server
from rightbatch._serve.sinks.line import Line
from rightbatch.examples.parts import render_frames

NAME = "serve_faults"
PYTHON = "/usr/bin/python3"  # the one that has GStreamer's bindings
CAMERAS, RATE = 8, 5.0
SIZES = ((320, 240), (400, 304))
TARGET = 0.1  # seconds, from a frame's arrival to its result
GOAL_BACK = 5.0  # seconds
_IN_FLIGHT = 1.5  # seconds before the end of which frames may still be under way


@dataclass(frozen=True)
class Fault:
    name: str
    command: str
    seconds: float  # how long it lasts
    back: str = ""  # the command that ends it


FAULTS = (
    Fault("killed", "kill", 10, "return"),
    Fault("stalled mid-stream", "stall", 15, "resume"),
    Fault("changes resolution", "resize", 0),
    Fault("absent for a minute", "kill", 60, "return"),
    Fault("sends garbage for video", "garble", 15, "resume"),
    Fault("sends garbage for RTSP", "noise", 15, "return"),
)


class Cameras:
    """The server's process."""

    def __init__(self, count: int, rate: float, folder: Path) -> None:
        films = [[*size, str(_film(folder / f"{size[0]}.yuv", size))] for size in SIZES]
        asked = {"cameras": count, "rate": rate, "films": films}
        script = Path(__file__).with_name("rtsp_server.py")
        self._process = subprocess.Popen(
            [PYTHON, str(script), json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._hear()
        self.urls: list[str] = ready["urls"]
        self.version: str = ready["version"]

    def do(self, command: str, camera: int) -> float:
        """When it was done, on the monotonic clock."""
        self._say(f"{command} {camera}")
        return float(self._hear()["at"])

    def quit(self) -> list[dict[int, float]]:
        """What each camera sent: number and time."""
        self._say("quit")
        sent = [{int(number): float(at) for number, at in one} for one in self._hear()["cameras"]]
        self._process.wait(10)
        return sent

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        message: dict[str, Any] = json.loads(self._process.stdout.readline())
        return message


def _film(path: Path, size: tuple[int, int]) -> Path:
    with path.open("wb") as file:
        for picture, _ in render_frames(100, size=size):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            file.write(frame.to_ndarray().tobytes())
    return path


@dataclass(frozen=True)
class Result:
    """Of one frame: when it came, its latency, and the frame's height and width."""

    at: float
    latency: float
    shape: tuple[int, int]

    @property
    def in_time(self) -> bool:
        return self.latency <= TARGET


@dataclass
class Seen:
    """What came of one camera, by the numbers in its pictures, in the order in which it came."""

    results: dict[int, Result] = field(default_factory=dict)
    unreadable: int = 0  # frames whose marker is damaged, or another camera's
    disordered: int = 0


class SmallModel:
    """Reads the marker, and multiplies some matrices."""

    name = "marker"
    sizes = None

    def __init__(self) -> None:
        self._weights = np.random.default_rng(0).normal(size=(80 * 60 * 3, 32)).astype(np.float32)

    def __call__(self, images: list[np.ndarray]) -> list[Any]:
        inputs = np.stack([image[:240:4, :320:4].reshape(-1) for image in images])
        _ = inputs.astype(np.float32) @ self._weights
        return [(marker.read(image), image.shape[:2]) for image in images]

    def close(self) -> None:
        pass


class Rig:
    """All cameras in one server, and what comes of it."""

    def __init__(self, urls: list[str]) -> None:
        self.seen = [Seen() for _ in urls]
        self.server = Server(SmallModel(), TARGET, to=self._note, progress=False)
        for index, url in enumerate(urls):
            self.server.add(url, name=str(index))

    def status(self, camera: int) -> dict[str, Any]:
        sources = self.server.status()["sources"]
        return next(source for source in sources if source["name"] == str(camera))

    def is_ready(self) -> bool:
        return self.server.batcher.calibration is not None and all(s.results for s in self.seen)

    def _note(self, line: Line) -> None:
        seen = self.seen[int(line.source)]
        found, shape = line.result
        if found is None or found[0] != int(line.source):
            seen.unreadable += 1
            return
        number = found[1]
        seen.disordered += bool(seen.results) and number <= next(reversed(seen.results))
        latency = (line.latency_ms or 0.0) / 1000
        seen.results[number] = Result(time.monotonic(), latency, shape)


@dataclass
class Failed:
    """One fault as it went."""

    fault: Fault
    camera: int
    began: float
    returned: float
    said: list[str] = field(default_factory=list)  # states and errors that the feed showed


@contextlib.contextmanager
def running(cameras: int, rate: float) -> Iterator[tuple[Cameras, Rig]]:
    with tempfile.TemporaryDirectory() as folder:
        server = Cameras(cameras, rate, Path(folder))
        rig = Rig(server.urls)
        try:
            yield server, rig
        finally:
            rig.server.stop()
            server.kill()


def main(minutes: float = 10.0) -> dict[str, Any]:
    """Run it; faults that would not fit into so many minutes are shortened."""
    whole = 60 * minutes
    slot = whole / (len(FAULTS) + 0.5)
    with running(CAMERAS, RATE) as (server, rig):
        began = time.monotonic()
        while not rig.is_ready():
            time.sleep(0.1)
        ready = time.monotonic()
        _wait_until(began + slot / 2)
        failed = [
            _fail(server, rig, fault, index, until=began + slot / 2 + (index + 1) * slot)
            for index, fault in enumerate(FAULTS)
        ]
        ended = time.monotonic()
        statuses = [rig.status(camera) for camera in range(CAMERAS)]
        time.sleep(1.0)
        left = rig.server.stop()
        sent = server.quit()
    found = _evaluate(sent, rig.seen, failed, ready, ended)
    found |= {
        "minutes": minutes,
        "cameras": CAMERAS,
        "frames_per_second": RATE,
        "sizes": SIZES,
        "target_ms": 1000 * TARGET,
        "gstreamer": server.version,
        "reconnects": [status["reconnects"] for status in statuses],
        "damaged_frames_left_out": [status["broken"] for status in statuses],
        "dropped": [status["dropped"] for status in statuses],
        "left_at_the_end": left,
    }
    return found


def _fail(server: Cameras, rig: Rig, fault: Fault, camera: int, until: float) -> Failed:
    room = until - time.monotonic()
    seconds = min(fault.seconds, 0.7 * room)
    say(f"camera {camera}: {fault.name} ({seconds:.0f} s)")
    began = returned = server.do(fault.command, camera)
    said: dict[str, None] = {}
    while time.monotonic() < began + seconds:
        status = rig.status(camera)
        said[f"{status['state']}: {status['error']}"] = None
        time.sleep(0.05)
    if fault.back:
        returned = server.do(fault.back, camera)
    _wait_until(until)
    return Failed(fault, camera, began, returned, list(said))


def _wait_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


def _evaluate(
    sent: list[dict[int, float]],
    seen: list[Seen],
    failed: list[Failed],
    ready: float,
    ended: float,
) -> dict[str, Any]:
    """What became of the frames that were sent from when all ran, up to the end."""
    faults = [_back(one, sent[one.camera], seen[one.camera].results) for one in failed]
    lost: list[list[int]] = []
    latencies: list[float] = []
    delays: list[float] = []
    in_time = expected = 0
    for camera, came in enumerate(seen):
        # A camera that fails is one of the others before it does, and when it is back.
        away = [
            (one.began - 1 / RATE, one.returned + (fault["back_after_s"] or float("inf")))
            for one, fault in zip(failed, faults, strict=True)
            if one.camera == camera and one.fault.back
        ]
        due = [
            number
            for number, at in sent[camera].items()
            if ready <= at < ended - _IN_FLIGHT
            and not any(start <= at <= end for start, end in away)
        ]
        expected += len(due)
        lost.append([number for number in due if number not in came.results])
        results = [(number, came.results[number]) for number in due if number in came.results]
        latencies += [result.latency for _, result in results]
        in_time += sum(result.in_time for _, result in results)
        delays += [result.at - sent[camera][number] for number, result in results]
    return {
        "faults": faults,
        "frames_sent_by_others": expected,
        "lost": sum(map(len, lost)),
        "lost_by_camera": lost,
        "in_target": in_time / expected if expected else None,
        "latency_ms": _quantiles(latencies),
        "sent_to_result_ms": _quantiles(delays),
        "unreadable": sum(came.unreadable for came in seen),
        "disordered": sum(came.disordered for came in seen),
    }


def _back(one: Failed, sent: dict[int, float], came: dict[int, Result]) -> dict[str, Any]:
    """How soon results came again, of frames that the camera sent after its return."""
    new = [n for n in came if sent[n] >= one.returned]
    if one.fault.command == "resize":
        shape = came[max(n for n in came if sent[n] < one.began)].shape
        new = [n for n in new if came[n].shape != shape]
    back = min((came[n].at for n in new), default=None)
    return {
        "fault": one.fault.name,
        "camera": one.camera,
        "away_s": one.returned - one.began,
        "back_after_s": None if back is None else back - one.returned,
        "said": one.said,
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    hundredths = statistics.quantiles(seconds, n=100)
    return {
        "p50": 1000 * hundredths[49],
        "p99": 1000 * hundredths[98],
        "max": 1000 * max(seconds),
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['cameras']} RTSP cameras at {found['frames_per_second']:g} frames/s for "
        f"{found['minutes']:g} minutes, target {found['target_ms']:g} ms",
        "",
        "| fault | away | first result after its return | goal |",
        "|---|---|---|---|",
    ]
    for one in found["faults"]:
        back = one["back_after_s"]
        after = "never" if back is None else f"{back:.1f} s"
        lines.append(f"| {one['fault']} | {one['away_s']:.0f} s | {after} | ≤ {GOAL_BACK:g} s |")
    in_target = found["in_target"]
    lines += [
        "",
        "| frames of the cameras that did not fail | measured | goal |",
        "|---|---|---|",
        f"| sent | {found['frames_sent_by_others']:,} | |",
        f"| without a result | {found['lost']} | 0 |",
        f"| within the target | {in_target:.2%} | ≥ 99% |",
        f"| latency p50 / p99 | {found['latency_ms']['p50']:.1f} / "
        f"{found['latency_ms']['p99']:.1f} ms | ≤ {found['target_ms']:g} ms |",
        f"| out of order / damaged | {found['disordered']} / {found['unreadable']} | 0 / 0 |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="file for the result, not benchmarks/results")
    arguments = parser.parse_args()
    result = main(arguments.minutes)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(about() | result, indent=1) + "\n")
        print(table(result))
    else:
        _record.save(NAME, result, table(result))
