"""What is compared: how each system is opened, and how a load is put on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serve.load_http import load, wait_until_quick
from benchmarks.serve.peers.command_line import Asked
from benchmarks.serve.peers.fixed import FixedBatcher
from benchmarks.serve.peers.worker import Worker, pictures
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.virtual_clock import Arrival
from rightbatch._serve.load.arrivals import Kind, schedule
from rightbatch._serve.load.early_stopping import SHARE
from rightbatch._serve.load.load_test import LoadResult, run

ROOT = Path(__file__).parents[3]
PER = 10.0  # frames a second of a camera, about: as many cameras as make just the rate of a load
_WARM_UP = 3.0  # seconds at a moderate load, in which adaptive ones learn
_NICE = 10  # servers step back behind the client, which has to keep to its schedule


@dataclass(frozen=True)
class Config:
    """What a system is set to: the largest batch, and seconds to wait for it, where it has them.

    BentoML's `wait` is its `max_latency_ms`; 0 is the target.
    """

    size: int = 0
    wait: float = 0.0
    tells_rate: bool = True  # Ultralytics: whether the streams say their rate

    def __str__(self) -> str:
        if self.size:
            return f"{self.size}, {1000 * self.wait:g} ms"
        return "" if self.tells_rate else "no rate told"


@dataclass(frozen=True)
class Load:
    """`stop_at` is the target by which it is given up once too much is late."""

    kind: Kind
    rate: float
    seconds: float
    seed: int
    stop_at: float

    @property
    def per(self) -> float:
        """Frames a second of a camera."""
        return self.rate / max(1, round(self.rate / PER))

    def arrivals(self) -> list[Arrival]:
        return schedule(self.kind, self.rate, self.seconds, self.seed, self.per)


Put = Callable[[Load], tuple[LoadResult, float | None]]  # and what the client took of a core


@dataclass(frozen=True)
class System:
    """One row of the tables.

    `knows_target` is whether it is told the target, and so runs anew for each.
    """

    name: str
    open: Callable[[str, Config, float], AbstractContextManager[Put]]
    configs: tuple[Config, ...] = (Config(),)
    knows_target: bool = False
    is_http: bool = False
    kinds: tuple[Kind, ...] = ("poisson", "cameras")


def through_http(module: str) -> Callable[[str, Config, float], AbstractContextManager[Put]]:
    @contextlib.contextmanager
    def opened(model: str, config: Config, target: float) -> Iterator[Put]:
        bodies = [picture.tobytes() for picture in pictures()]
        asked = Asked(model, _free_port(), target, config.size, config.wait)
        url = f"http://127.0.0.1:{asked.port}/predict"
        # A client that waits longer than this for one picture has found a server that is not idle.
        within = max(target, 0.1)
        with _server(module, asked):

            def put(one: Load) -> tuple[LoadResult, float | None]:
                arrivals = one.arrivals()
                found = load(url, bodies, arrivals, one.stop_at)
                wait_until_quick(url, bodies[0], within)
                return found

            wait_until_quick(url, bodies[0], within)
            load(url, bodies, schedule("poisson", 50, _WARM_UP), 10.0)
            yield put

    return opened


@contextlib.contextmanager
def rightbatch_here(model: str, config: Config, target: float) -> Iterator[Put]:
    with Batcher(Worker(model), target, calibrate_on=pictures(1)[0]) as batcher:

        def put(one: Load) -> tuple[LoadResult, float | None]:
            arrivals = one.arrivals()
            names = {stream for _, stream in arrivals} if one.kind == "cameras" else set()
            for name in names:
                batcher.open_stream(name, contract="freshest")
            try:
                return run(batcher, pictures(), arrivals, share=SHARE), None
            finally:
                for name in names:
                    batcher.close_stream(name)

        run(batcher, pictures(), schedule("poisson", 50, _WARM_UP))
        yield put


@contextlib.contextmanager
def fixed_here(model: str, config: Config, target: float) -> Iterator[Put]:
    batcher = FixedBatcher(Worker(model), config.size, config.wait, target)

    def put(one: Load) -> tuple[LoadResult, float | None]:
        batcher.latency = one.stop_at
        arrivals = one.arrivals()
        try:
            return run(batcher, pictures(), arrivals, share=SHARE), None
        finally:
            batcher.clear()

    run(batcher, pictures(), schedule("poisson", 50, _WARM_UP / 3))
    try:
        yield put
    finally:
        batcher.close()


@contextlib.contextmanager
def ultralytics_here(model: str, config: Config, target: float) -> Iterator[Put]:
    command = [sys.executable, "-m", "benchmarks.serve.peers.ultralytics_stream", model]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def put(one: Load) -> tuple[LoadResult, float | None]:
            asked = {
                "rate": one.rate,
                "seconds": one.seconds,
                "seed": one.seed,
                "per": one.per,
                "target": one.stop_at,
                "tells_rate": config.tells_rate,
            }
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            return LoadResult(target=one.stop_at, **json.loads(stdout.readline())), None

        json.loads(stdout.readline())
        try:
            yield put
        finally:
            stdin.close()


_GRID = tuple(Config(size, wait / 1000) for size in (8, 4, 2) for wait in (0, 5, 10, 20))

SYSTEMS = (
    System("rightbatch", through_http("rightbatch_http"), knows_target=True, is_http=True),
    System("LitServe", through_http("litserve_http"), _GRID, is_http=True),
    System(
        "Ray Serve, `@serve.batch`",
        through_http("ray_http"),
        # Half of the grid: it takes ten seconds to start.
        tuple(config for config in _GRID if config.size > 2 and config.wait < 0.02),
        is_http=True,
    ),
    System(
        "BentoML, adaptive batching",
        through_http("bentoml_http"),
        (Config(8), Config(32), Config(8, 1.0), Config(32, 1.0)),
        knows_target=True,
        is_http=True,
    ),
    System("rightbatch", rightbatch_here, knows_target=True),
    System("batch 1", fixed_here, (Config(1),)),
    System("best fixed size and wait", fixed_here, _GRID),
    System(
        "Ultralytics, stream loop",
        ultralytics_here,
        (Config(tells_rate=False), Config(tells_rate=True)),
        kinds=("cameras",),
    ),
)


@contextlib.contextmanager
def _server(module: str, asked: Asked) -> Iterator[None]:
    """A server of the peers' environment, which finds rightbatch's sources by their path."""
    python = ROOT / os.environ.get("PEERS_VENV", ".venv-peers") / "bin" / "python"
    command = [str(python), "-m", f"benchmarks.serve.peers.{module}", *asked.arguments()]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["nice", "-n", str(_NICE), *command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        except TimeoutError:
            log.seek(0)
            print(log.read()[-2000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):  # the last of its group has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
