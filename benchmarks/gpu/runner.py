"""Runs parts, each in a process of its own with a time limit, and writes results after each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.rows import Row, read_rows
from benchmarks.gpu.table import table

ROOT = Path(__file__).parents[2]
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_OFFLINE": "true",
}
_LOG_SHOWN = 6000  # characters of what a process printed, where it says nothing else


def run(
    parts: Sequence[Part],
    *,
    out: Path,
    device: str = "cuda",
    tiny: bool = False,
    scale: float = 1.0,
    at_once: int = 1,
    show: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run `parts`; the file of results, written anew after each of them.

    A part's limit is its seconds times `scale`. Results of other parts that the file has are kept.
    More than one part `at_once` is for runs whose figures nobody reads.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = _Results(out)

    def one(part: Part) -> None:
        limit = part.seconds * scale
        show(f"{time.strftime('%H:%M:%S')} {part.name}: {part.about} (at most {limit:.0f} s)")
        with tempfile.TemporaryDirectory(
            prefix="rightbatch-gpu-", ignore_cleanup_errors=True
        ) as folder:
            found = run_part(part, Path(folder), device=device, tiny=tiny, limit=limit)
            results.add(part.name, found, Path(folder) / "files")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, parts))
    return results.written()


class _Results:
    """The file of results. Its name is the GPU's, which the first part says that can."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._waiting: dict[str, Any] = {}  # of parts that ended before anyone said the name
        self._lock = threading.Lock()

    def add(self, name: str, found: dict[str, Any], files: Path) -> None:
        with self._lock:
            self._waiting[name] = found
            gpu = found["about"].get("gpu")
            if gpu is not None or self._path is not None:
                self._write(gpu)
                assert self._path is not None
                for file in sorted(files.iterdir()):
                    kept = self._path.with_suffix("")
                    kept.mkdir(exist_ok=True)
                    (kept / file.name).write_bytes(file.read_bytes())

    def written(self) -> Path:
        if self._waiting:
            self._write(None)
        assert self._path is not None
        return self._path

    def _write(self, gpu: str | None) -> None:
        self._path = self._path or self._folder / f"gpu-{slug(gpu or '')}.json"
        document: dict[str, Any] = {"gpu": gpu or "an unknown GPU", "parts": {}}
        if self._path.exists():
            document = json.loads(self._path.read_text())
        found = document["parts"] | self._waiting
        order = {part.name: number for number, part in enumerate(PARTS)}
        names = sorted(found, key=lambda name: order.get(name, len(order)))
        document["parts"] = {name: found[name] for name in names}
        self._waiting.clear()
        self._path.write_text(json.dumps(document, indent=1) + "\n")
        self._path.with_suffix(".md").write_text(table(document))


def run_part(part: Part, folder: Path, *, device: str, tiny: bool, limit: float) -> dict[str, Any]:
    """One part in its process: its rows so far, and how it ended."""
    rows_path, log = folder / "rows.jsonl", folder / "log.txt"
    (folder / "files").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.child", part.module]
    command += ["--requires", ",".join(part.requires), "--device", device]
    command += ["--rows", str(rows_path), "--files", str(folder / "files")]
    command += ["--seconds", str(limit)] + (["--tiny"] if tiny else [])
    started = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(part, folder, tiny),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            outcome = "finished" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            outcome = "timed out"
        finally:
            _end(process)
    seconds = time.perf_counter() - started
    about, rows = read_rows(rows_path)
    if outcome != "finished":
        said = log.read_text(errors="replace")[-_LOG_SHOWN:]
        last = f"{outcome} after {seconds:.0f} s of {limit:.0f}"
        rows.append(Row(part.name, error=f"{said.rstrip()}\n{last}"))
    return {
        "what": part.about,
        "about": about,
        "outcome": outcome,
        "seconds": seconds,
        "limit_seconds": limit,
        "rows": [row.to_dict() for row in rows],
    }


def slug(name: str) -> str:
    """A GPU's name for a file's: lower case, without the vendor.

    >>> slug("NVIDIA H100 80GB HBM3")
    'h100-80gb-hbm3'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain.removeprefix("nvidia-") or "unknown"


def _environment(part: Part, folder: Path, tiny: bool) -> dict[str, str]:
    """The checkout is found by its path, installed or not, and nothing is left in the user's home:
    caches, Ultralytics' settings and temporary files go to the part's folder."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XDG_CACHE_HOME": str(scratch),
        "YOLO_CONFIG_DIR": str(scratch),
        "TMPDIR": str(scratch),
    }
    if tiny:
        own["OMP_NUM_THREADS"] = "1"  # for small operators a second thread costs more than it does
    return os.environ | _OFFLINE | own | dict(part.environment)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and every process that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended
    process.wait()
