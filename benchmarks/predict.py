"""`predict` against what happened: recordings of real GPUs, and real steps on the CPU.

`python -m benchmarks.predict` replays the recorded traces, follows a transformer like the one that
was recorded, compares fake steps with real ones event by event, and times predictions. What was
predicted is run on a GPU by `python -m benchmarks.gpu`; what others measured on real GPUs is
predicted by `python -m benchmarks.predict public --data FOLDER` (`benchmarks.predict_public`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from benchmarks._record import RESULTS, median, save
from benchmarks.workloads import data_folder
from rightbatch._predict.allocator import AllocatorSettings
from rightbatch._predict.follow import Follower
from rightbatch._predict.overhead import CUBLAS
from rightbatch._predict.replay import read_recording, replay
from rightbatch._predict.simulate import simulate
from rightbatch._predict.variant import Variant
from rightbatch._workload.factory import FileFactory

WORKLOADS = Path(__file__).parent / "workloads"
MIB = 2**20
RECORDED = {"allocated": 8681.8, "reserved": 8836.0}
"""MiB, of cuda-traces/lm_medium_fp32_ctx256_training, recorded on a real GPU."""
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "AdamW": torch.optim.AdamW,
}
TIMED = {
    "ResNet-50, batch 64": ("resnet50", 64, "RTX 4090"),
    "decoder of 7 billion, batch 1": ("decoder7b", 1, "B200"),
}
REPEATS = 5


def main() -> None:
    if sys.argv[1:2] == ["public"]:
        from benchmarks.predict_public.run import main as public

        public(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    stored = RESULTS / "predict.json"
    results: dict[str, Any] = {}
    if stored.exists():
        results = json.loads(stored.read_text())["results"]
    for part in arguments.parts:
        print(f"{time.strftime('%H:%M:%S')} {part}", file=sys.stderr, flush=True)
        results[part] = PARTS[part]()
        save("predict", {"results": results}, table(results))


def replays() -> list[dict[str, Any]]:
    """Every recording, its addresses and segments, and how fast it went."""
    found = []
    for path in sorted((data_folder() / "cuda-traces").glob("*.json.gz")):
        recording = read_recording(path)
        seconds = []
        for _ in range(REPEATS):
            started = time.process_time()
            result = replay(recording)
            seconds.append(time.process_time() - started)
        kept = sum(size for _, size in recording["final"]["segments"])
        found.append(
            result.to_dict() | {"name": path.name, "seconds": seconds, "final_reserved_bytes": kept}
        )
    return found


def transformer() -> dict[str, Any]:
    """A decoder of our own like the recorded one, followed and allocated from process start."""
    started = time.perf_counter()
    (trace,) = Follower(FileFactory(WORKLOADS / "lm_medium.py", "workload").load()).traces(
        [4], Variant(capability=8.0)
    )
    simulated = simulate(trace, AllocatorSettings(), CUBLAS)
    assert simulated is not None
    return {
        "allocated": simulated.allocated_bytes / MIB,
        "reserved": simulated.reserved_bytes / MIB,
        "seconds": time.perf_counter() - started,
    }


def fakes() -> list[dict[str, Any]]:
    """A fake step against a real one on the CPU: peak, and live bytes after every allocation."""
    from benchmarks.workloads.gallery import GALLERY

    found = []
    for name, make in GALLERY.items():
        for optimizer, made in OPTIMIZERS.items():
            for precision in ("fp32", "bf16"):

                def factory(
                    make: Any = make, made: Any = made, precision: Any = precision
                ) -> rb.Workload:
                    torch.manual_seed(0)
                    model, data, loss = make()
                    return rb.Workload(
                        model, loss, made(model.parameters()), data, precision=precision
                    )

                started = time.perf_counter()
                fake, real = Follower(factory), Follower(factory)
                real.use_real_tensors(RuntimeError("for comparison"))
                case = {"model": name, "optimizer": optimizer, "precision": precision}
                (happened,) = real.traces([3], Variant())
                (imagined,) = fake.traces([3], Variant())
                case |= {"how": fake.how, "real": happened.peak_bytes, "fake": imagined.peak_bytes}
                case["every_event"] = _levels(imagined) == _levels(happened)
                found.append(case)
                seconds = time.perf_counter() - started
                print(f"  {name} {optimizer} {precision}: {seconds:.1f} s", file=sys.stderr)
    return found


def _levels(trace: Any) -> list[int]:
    return [
        level for event, level in zip(trace.order, trace.live_bytes(), strict=True) if event >= 0
    ]


def times() -> dict[str, Any]:
    """Whole commands, imports included: seconds, and the most memory that any process had."""
    found: dict[str, Any] = {}
    for name, (file, batch, gpu) in TIMED.items():
        command = [sys.executable, "-m", "rightbatch", "predict", "--gpu", gpu]
        command += [f"{WORKLOADS / file}.py:workload", "--batch", str(batch)]
        found[name] = {}
        for kind, more in (("prediction", ["--no-remedies"]), ("with remedies", [])):
            runs = [timed([*command, *more]) for _ in range(REPEATS)]
            found[name][kind] = {key: [run[key] for run in runs] for key in runs[0]}
    return found


def timed(command: list[str]) -> dict[str, float]:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": usage.ru_maxrss / 1024,  # of the largest process, probes included
        "exit": process.returncode,
    }


PARTS = {
    "replays": replays,
    "transformer": transformer,
    "fakes": fakes,
    "times": times,
}


def table(results: dict[str, Any]) -> str:
    """Compare predictions with recordings, with real steps, and with the goals for time."""
    text = ""
    if "replays" in results:
        text += "| recording | addresses | new segments | peak reserved |\n|---|---|---|---|\n"
        for r in results["replays"]:
            text += (
                f"| {r['name']} | {r['address_matches']} of {r['allocations']} "
                f"| {r['segment_matches']} of {r['segments']} "
                f"| {r['peak_reserved_bytes'] / MIB:.0f} MiB |\n"
            )
        events = sum(r["events"] for r in results["replays"])
        seconds = sum(median(r["seconds"]) for r in results["replays"])
        text += f"\n{events / seconds:,.0f} events per second of processor time\n\n"
    if "transformer" in results:
        r = results["transformer"]
        text += "| of a recorded training | recorded | predicted | error |\n|---|---|---|---|\n"
        for kind, recorded in RECORDED.items():
            error = r[kind] / recorded - 1
            text += f"| {kind} peak | {recorded:,.1f} MiB | {r[kind]:,.1f} MiB | {error:+.2%} |\n"
        text += "\n"
    if "fakes" in results:
        cases = results["fakes"]
        equal = [c for c in cases if c["fake"] == c["real"]]
        whole = [c for c in cases if c["every_event"]]
        real = sorted({c["model"] for c in cases if c["how"] == "real"})
        worst = max(abs(c["fake"] / c["real"] - 1) for c in cases)
        text += (
            f"{len(equal)} of {len(cases)} fake steps have the peak of the real step to the byte "
            f"({len(whole)} at every allocation), the worst is {worst:.2%} off; "
            f"{', '.join(real) or 'none'} needed real tensors\n\n"
        )
        for c in cases:
            if c["fake"] != c["real"]:
                text += f"- {c['model']}, {c['optimizer']}, {c['precision']}: "
                text += f"{c['fake'] / c['real'] - 1:+.2%}\n"
        text += "\n"
    if "times" in results:
        text += "| time | prediction | with what would help | memory |\n|---|---|---|---|\n"
        for name, r in results["times"].items():
            cells = [
                f"{median(one['seconds']):.1f} s ({min(one['seconds']):.1f} to "
                f"{max(one['seconds']):.1f})"
                for one in r.values()
            ]
            memory = max(max(one["peak_mib"]) for one in r.values())
            text += f"| {name} | {' | '.join(cells)} | {memory:,.0f} MiB |\n"
    return text


if __name__ == "__main__":
    main()
