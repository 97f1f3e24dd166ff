"""A study that is made up, in the documents that the page is drawn from, behind a real server.

Steps and examples to target follow S = S_min + E_min / B, as McCandlish et al. (2018) have it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import UsageError
from rightbatch._study.records import Curve, Run, Target

STEPS_MIN, EXAMPLES_MIN = 200.0, 20_000.0
CRITICAL = EXAMPLES_MIN / STEPS_MIN
LIMIT = 4 * 2**30
AXES = ("steps", "examples", "seconds", "epochs")
METRICS = (
    "accuracy",
    "loss",
    "evaluation_loss",
    "noise_scale",
    "loss_spread",
    "gradient_variance",
    "learning_rate",
)
EPOCH = 10_000  # examples
_REVISIONS = itertools.count()  # of all studies, which may follow each other behind one server

Numbers = NDArray[np.float64]


class MadeUp:
    """Documents of a study; whatever is changed in `runs` or `changes` is shown after `touch`.

    Args:
        sizes: the batch sizes; `None` is a run that tells none.
        seeds: runs of each.
        places: of every curve.
        out_of_memory: sizes that did not fit.
        live: whether it trains still.
        metrics: that are logged.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (8, 16, 32, 64, 128, 256),
        seeds: int = 3,
        places: int = 60,
        *,
        out_of_memory: Sequence[int] = (),
        live: bool = False,
        metrics: Sequence[str] = METRICS,
    ) -> None:
        self.sizes, self.seeds, self.places = tuple(sizes), seeds, places
        self.lost = tuple(out_of_memory)
        self.metrics = tuple(metrics)
        self.changes: dict[str, Any] = {"live": live}
        self.runs_ = [self._run(size, seed) for size in self.sizes for seed in range(seeds)]
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.touch()

    def touch(self) -> None:
        """Something has changed."""
        self._revision = next(_REVISIONS)

    def revision(self) -> str:
        return str(self._revision)

    def study(self) -> dict[str, Any]:
        if self.error:
            raise self.error
        self.asked.append("study")
        fits = [size for size in self.sizes if size not in self.lost]
        return {
            "schema": 1,
            "title": "digits",
            "live": False,
            "target": {"metric": "accuracy", "value": 0.9},
            "axes": list(AXES),
            "metrics": list(self.metrics),
            "runs": self.runs_,
            "answer": {
                "sentences": [
                    f"Batch {fits[3]} reached accuracy 0.9 first in seconds." if fits[3:] else "–",
                    "More examples at once save steps up to a batch of about 100.",
                    "It took 0.62 GiB of 4 GiB.",
                ],
                "first": {"seconds": fits[3], "steps": fits[-1], "examples": fits[0]}
                if fits[3:]
                else {"seconds": None, "steps": None, "examples": None},
            },
            "sizes": [self._size(size) for size in self.sizes],
            "critical": critical(fits),
            "critical_reason": "The curve fits the sizes within 3%.",
            "gap_sentence": "The bands overlap: these seeds show no difference in the gap.",
        } | self.changes

    def curves(self, metric: str) -> dict[str, Any]:
        self.asked.append(metric)
        if metric not in self.metrics:
            raise UsageError(f"no run has logged {metric!r}")
        sizes = [
            {
                "batch_size": size,
                "runs": self.seeds,
                "by": {axis: self._band(metric, size, axis) for axis in AXES},
            }
            for size in self.sizes
            if size not in self.lost
        ]
        return {"schema": 1, "metric": metric, "sizes": sizes}

    def run(self, id: str) -> dict[str, Any]:
        for run in self.runs_:
            if run["id"] == id:
                break
        else:
            raise UsageError(f"there is no run {id!r}")
        size, seed = run["batch_size"], run["seed"]
        if size in self.lost:
            return run | {"curves": {}}
        places = {axis: along(axis, size, self.places).tolist() for axis in AXES}
        curves = {
            metric: places | {"values": values(metric, size, seed, self.places).tolist()}
            for metric in self.metrics
        }
        return run | {"curves": curves, "events": [{"steps": 12, "text": "micro-batch 64 to 32"}]}

    def _band(self, metric: str, size: int, axis: str) -> dict[str, list[float]]:
        all_ = np.stack([values(metric, size, seed, self.places) for seed in range(self.seeds)])
        bands = {"middle": np.median(all_, 0), "low": all_.min(0), "high": all_.max(0)}
        x = along(axis, size, self.places)
        return {"x": x.tolist()} | {name: band.tolist() for name, band in bands.items()}

    def _run(self, size: int, seed: int) -> dict[str, Any]:
        is_lost = size in self.lost
        steps = 0.0 if is_lost else float(along("steps", size, self.places)[-1])
        seconds = 0.0 if is_lost else float(along("seconds", size, self.places)[-1])
        reached = steps_to_target(size) * (1 + 0.03 * (seed - 1))
        return {
            "id": f"run-{size}-{seed}",
            "name": f"batch {size}, seed {seed}",
            "batch_size": size,
            "seed": seed,
            "status": "out_of_memory" if is_lost else "finished",
            "reason": "needs 5.1 GiB of 4 GiB at micro-batch 1" if is_lost else "all epochs done",
            "started": 1_700_000_000.0 + size,
            "learning_rate": 0.01 * size / 8,
            "learning_rate_factor": 1.0,
            "micro_batch_size": min(size, 64),
            "steps": steps,
            "examples": steps * size,
            "seconds": seconds,
            "epochs": steps * size / EPOCH,
            "peak_bytes": None if is_lost else int(peak(size)),
            "limit_bytes": LIMIT,
            "device": "cuda:0",
            "parameters": {
                "batch_size": str(size),
                "seed": str(seed),
                "optimizer": "sgd",
                "momentum": "0.9",
                "learning_rate": f"{0.01 * size / 8:g}",
                "workload": "digits.py:workload",
            },
            "metrics": {}
            if is_lost
            else {name: float(values(name, size, seed, self.places)[-1]) for name in self.metrics},
            "examples_per_second": None if is_lost else steps * size / seconds,
            "reached": None
            if is_lost
            else {
                "steps": reached,
                "examples": reached * size,
                "seconds": reached * seconds_per_step(size),
            },
        }

    def _size(self, size: int) -> dict[str, Any]:
        is_lost = size in self.lost
        base: dict[str, Any] = {
            "batch_size": size,
            "runs": self.seeds,
            "statuses": {"out_of_memory" if is_lost else "finished": self.seeds},
            "limit_bytes": LIMIT,
            "learning_rate": band(0.01 * size / 8, 0),
        }
        if is_lost:
            names = ("examples_per_second", "peak_bytes", "gap", "loss_spread")
            nothing = dict.fromkeys((*names, "gradient_variance_of_batch"))
            return base | {"reached": {"of": self.seeds, "count": 0}} | nothing
        steps = steps_to_target(size)
        return base | {
            "reached": {
                "of": self.seeds,
                "count": self.seeds,
                "steps": band(steps),
                "examples": band(steps * size),
                "seconds": band(steps * seconds_per_step(size)),
            },
            "examples_per_second": band(size / seconds_per_step(size)),
            "peak_bytes": band(peak(size), 0.01),
            "gap": band(0.02 + 0.004 * np.log2(size), 0.4),
            "loss_spread": band(0.6 / size**0.5),
            "gradient_variance_of_batch": band(90 / size),
        }


class Store:
    """The same study as runs that were recorded."""

    def __init__(self, made: MadeUp) -> None:
        self.title = "digits"
        self.target = Target("accuracy", 0.9)
        self._made = made

    def revision(self) -> str:
        return self._made.revision()

    def runs(self) -> list[Run]:
        runs = []
        for told in self._made.runs_:
            size, seed = told["batch_size"], told["seed"]
            fields = {name: told[name] for name in told if name in Run.__annotations__}
            curves = {}
            if size not in self._made.lost:
                places = {axis: along(axis, size, self._made.places) for axis in AXES}
                curves = {
                    name: Curve(**places, values=values(name, size, seed, self._made.places))
                    for name in self._made.metrics
                }
            runs.append(Run(**fields | {"curves": curves}))
        return runs


def critical(sizes: Sequence[int]) -> dict[str, Any] | None:
    """The fit, which here is exact."""
    if not sizes:
        return None
    places = np.geomspace(min(sizes), max(sizes), 40).tolist()
    return {
        "steps_min": STEPS_MIN,
        "examples_min": EXAMPLES_MIN,
        "batch_size": CRITICAL,
        "low": 80.0,
        "high": 125.0,
        "rms_log_error": 0.03,
        "sizes": len(sizes),
        "curve": [[size, steps_to_target(size), size * steps_to_target(size)] for size in places],
    }


def steps_to_target(size: float) -> float:
    return STEPS_MIN + EXAMPLES_MIN / size


def seconds_per_step(size: float) -> float:
    return 0.004 + 0.0001 * size


def peak(size: float) -> float:
    return 2**28 + size * 10 * 2**20


def band(middle: float, share: float = 0.06) -> dict[str, float]:
    return {"middle": middle, "low": middle * (1 - share), "high": middle * (1 + share)}


def along(axis: str, size: int, places: int) -> Numbers:
    steps = np.linspace(1, 1.5 * steps_to_target(size), places).round()
    factor = {
        "steps": 1.0,
        "examples": size,
        "seconds": seconds_per_step(size),
        "epochs": size / EPOCH,
    }
    return np.asarray(steps * factor[axis])


def values(metric: str, size: int, seed: int, places: int) -> Numbers:
    random = np.random.default_rng([size, seed, METRICS.index(metric) if metric in METRICS else 99])
    way = along("steps", size, places) / steps_to_target(size)
    rough = 1 + random.normal(0, 0.04, places) + random.normal(0, 0.03)
    loss = 0.02 + 2.3 * np.exp(-3.4 * way)
    made = {
        "accuracy": 1 - 0.9 * np.exp(-2.2 * way),
        "loss": loss,
        "evaluation_loss": loss + 0.02 + 0.004 * np.log2(size),
        "noise_scale": 15 + 110 * way,
        "loss_spread": (0.1 + loss) / size**0.5,
        "gradient_variance": 30 + 60 * np.exp(-way),
        "learning_rate": np.full(places, 0.01 * size / 8),
        "sharpness_times_rate": 2 - 1.6 * np.exp(-3 * way),
    }
    if metric == "learning_rate":
        return made[metric]
    if metric == "accuracy":
        return np.asarray(1 - (1 - made[metric]) * rough)
    return np.asarray(made.get(metric, loss) * rough)


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


def ask(url: str, path: str, **headers: str) -> Answer:
    """One request. `Host`, `If_None_Match` and the like are headers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("GET", path, headers=named)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


@contextlib.contextmanager
def site(documents: Any, port: int = 0, **options: Any) -> Iterator[str]:
    """The URL of the documents' page, while it is served."""
    from rightbatch._study.web.app import app_of
    from rightbatch._web.listening import HttpServer

    listening = HttpServer().start(app_of(documents, **options), "127.0.0.1", port)
    try:
        yield listening.url
    finally:
        listening.stop()
