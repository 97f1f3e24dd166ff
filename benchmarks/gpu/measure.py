"""Real steps, each job in a fresh process that is forked off one that has imported everything.

`python -m benchmarks.gpu.measure` reads a line of JSON a job and answers with one. It never touches
the GPU itself, so every job has a context and an allocator of its own, as a training has, and costs
the seconds of its steps and not those of the imports. `Server` is the caller's side.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

JOB_SECONDS, TINY_SECONDS = 60.0, 600.0
"""Of a job; a tiny run may have a busy machine."""
_FORKED_TOO_LATE = ("in forked subprocess", "initialization error")
"""What CUDA says if a library started it while it was imported: before the fork."""


class Server:
    """Runs jobs one after the other, each in `seconds` at most; a context manager that ends the
    process. `packages` are imported once, for all jobs."""

    def __init__(self, seconds: float = JOB_SECONDS, packages: Iterable[str] = ()) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.measure", *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # CUDA's own way to see whether there is a GPU would start it before the fork.
            env=os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
        )

    def run(self, kind: str, **job: Any) -> dict[str, Any]:
        """The answer of a job (`peak`, `survives`): at least its `outcome`, as a probe's.

        Raises:
            RuntimeError: if the job failed with an error other than out-of-memory.
        """
        self.send(kind, **job)
        answer = self.receive()
        if answer["outcome"] == "failed":
            raise RuntimeError(f"{kind} {job}: {answer['error']}")
        return answer

    def send(self, kind: str, **job: Any) -> None:
        assert self._process.stdin is not None
        job |= {"kind": kind, "seconds": self._seconds}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that measures has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()  # closes the pipes


def main() -> None:
    import torch  # noqa: F401  what every job needs is imported once
    from torch.utils.data import default_collate  # noqa: F401

    import rightbatch as rb  # noqa: F401

    is_alone = sys.argv[1:] == ["--alone"]
    for package in () if is_alone else sys.argv[1:]:
        import_module(package)
    for line in sys.stdin:
        job = json.loads(line)
        if is_alone:
            print(json.dumps(_answer(job)), flush=True)
            return
        answer = _forked(job)
        if any(text in answer.get("error", "") for text in _FORKED_TOO_LATE):
            answer = _alone(job)
        print(json.dumps(answer), flush=True)


def _alone(job: dict[str, Any]) -> dict[str, Any]:
    """The job's answer from a process that imports everything anew."""
    command = [sys.executable, "-m", "benchmarks.gpu.measure", "--alone"]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"outcome": "killed", "error": done.stderr[-3000:]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _forked(job: dict[str, Any]) -> dict[str, Any]:
    """The job's answer from a child; what kills that is an answer, too."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(_answer(job)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    seconds = job["seconds"]
    text = _read(reading, seconds)
    os.close(reading)
    if text is None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if text is None:
        return {"outcome": "failed", "error": f"took more than {seconds} s"}
    if code or not text:
        return {"outcome": "killed", "error": f"the process ended with status {code}"}
    answer: dict[str, Any] = json.loads(text)
    return answer


def _read(pipe: int, seconds: float) -> bytes | None:
    """All that is written until the other end is closed; None if that takes longer."""
    text, until = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(until - time.monotonic(), 0))[0]:
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return text
        text += chunk
    return None


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu.internals import is_out_of_memory

    try:
        return {"outcome": "ok"} | _JOBS[job["kind"]](job)
    except BaseException as error:
        outcome = "out_of_memory" if is_out_of_memory(error) else "failed"
        return {"outcome": outcome, "error": traceback.format_exc()[-3000:]}


def peak(job: dict[str, Any]) -> dict[str, Any]:
    """Steps of one size: what they needed, and with `record` the allocator's history as a file."""
    import torch

    from benchmarks.gpu import nvidia
    from benchmarks.gpu.recording import recording_of, start, stop, write

    is_cuda = job["device"].startswith("cuda")
    used_before = nvidia.used_bytes() if is_cuda else None
    device = _prepared(job)
    record = job.get("record")
    # From the first allocation on, or in the middle of a training: what is there then is initial.
    before = start() if record and not job.get("record_late") else None
    loop, seconds = _loop(job), []
    for number in range(job["steps"]):
        if record and job.get("record_late") and number == 1:
            before = start()
        began = time.perf_counter()
        loop.step(job["batch"])
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    loop.evaluate(job["batch"])
    loop.step(job["batch"])
    if not is_cuda:
        reading = device.read()
        return {"allocated": reading.peak_bytes, "reserved": reading.charged_bytes} | {
            "step_seconds": seconds,
            "process": None,
        }
    used = nvidia.used_bytes()
    found = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "process": None if used is None or used_before is None else used - used_before,
        "step_seconds": seconds,
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
    }
    if record and before is not None:
        what = f"{job['case']}, batch {job['batch']}, torch {torch.__version__}"
        write(recording_of(before, stop(), what), Path(record))
    return found


def survives(job: dict[str, Any]) -> dict[str, Any]:
    """Whether training steps, an evaluation and another step pass; the answer is the outcome."""
    _prepared(job)
    loop = _loop(job)
    for _ in range(job["steps"]):
        loop.step(job["batch"])
    loop.evaluate(job["batch"])
    loop.step(job["batch"])
    if job["device"].startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return {}


def _prepared(job: dict[str, Any]) -> Any:
    """The device with its limit: set by torch's own function on CUDA, by ours on the CPU."""
    import torch

    limit = job.get("limit")
    if job["device"].startswith("cuda"):
        torch.cuda.init()
        if limit is not None:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), 0)
        return None
    from benchmarks.gpu.internals import open_device

    device = open_device("cpu")
    device.prepare()
    if limit is not None:
        device.enforce(limit)
    device.reset_peak()
    return device


def _loop(job: dict[str, Any]) -> Any:
    import torch

    from benchmarks.gpu.loop import Loop
    from benchmarks.gpu.workloads import CASES

    torch.manual_seed(0)
    return Loop(CASES[job["case"]].factory(job["tiny"])(), job["device"])


_JOBS = {"peak": peak, "survives": survives}

if __name__ == "__main__":
    main()
