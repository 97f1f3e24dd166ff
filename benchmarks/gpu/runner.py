"""Runs parts one after the other, each in a process of its own, and writes results after each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part
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
    show: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Run `parts`; the file of results, written anew after each of them.

    A part's limit is its seconds times `scale`. Results of other parts that the file has are kept.
    None if no part could say what this machine has.
    """
    out.mkdir(parents=True, exist_ok=True)
    written: Path | None = None
    waiting: dict[str, Any] = {}  # results of parts that ended before they said where they run
    for part in parts:
        limit = part.seconds * scale
        show(f"{time.strftime('%H:%M:%S')} {part.name}: {part.about} (at most {limit:.0f} s)")
        with tempfile.TemporaryDirectory(prefix="rightbatch-gpu-") as folder:
            found = run_part(part, Path(folder), device=device, tiny=tiny, limit=limit)
            name = found["about"].get("gpu")
            waiting[part.name] = found
            if name is None and written is None:
                continue
            if written is None:
                written = out / f"gpu-{slug(name)}.json"
            _merge(written, name, waiting)
            waiting.clear()
            _keep_files(Path(folder) / "files", written.with_suffix(""))
    if written is None and waiting:
        written = out / "gpu-unknown.json"
        _merge(written, "unknown", waiting)
    return written


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


def _merge(path: Path, name: str | None, parts: dict[str, Any]) -> None:
    document: dict[str, Any] = {"gpu": name, "parts": {}}
    if path.exists():
        document = json.loads(path.read_text())
    document["parts"] |= parts
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(document))


def _keep_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        target.mkdir(exist_ok=True)
        (target / file.name).write_bytes(file.read_bytes())
