"""`python -m benchmarks.gpu`: how true rightbatch is on the GPU of this machine, in 8 minutes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.parts import MOST_SECONDS, PARTS
from benchmarks.gpu.runner import ROOT, run

RESULTS = ROOT / "benchmarks" / "results"
TINY_SCALE = 2.0
"""Of the limits on the CPU: a tiny run shows that all works, on a machine that may be busy."""


def main() -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--parts", default=",".join(names), help=f"of {', '.join(names)}; by default all"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"for all parts together, shared out as their limits are (default {MOST_SECONDS} for "
        "all of them)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="every part on the CPU with small models; keeps nothing"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default benchmarks/results)"
    )
    asked = parser.parse_args()
    wanted = [name.strip() for name in asked.parts.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    parts = [part for part in PARTS if part.name in wanted]
    if not asked.tiny and not _has_gpu():
        parser.error("PyTorch sees no CUDA GPU here; --tiny runs every part on the CPU")
    scale = TINY_SCALE if asked.tiny else 1.0
    if asked.seconds is not None:
        scale = asked.seconds / sum(part.seconds for part in parts)
    with tempfile.TemporaryDirectory() as scratch:
        written = run(
            parts,
            out=asked.out or (Path(scratch) if asked.tiny else RESULTS),
            device="cpu" if asked.tiny else "cuda",
            tiny=asked.tiny,
            scale=scale,
            at_once=2 if asked.tiny else 1,
            show=lambda text: print(text, file=sys.stderr, flush=True),
        )
        print(written.with_suffix(".md").read_text())
        if asked.out or not asked.tiny:
            print(f"written to {written}")
    return 0


def _has_gpu() -> bool:
    """Asked of another process: this one needs the standard library only."""
    question = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", question], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
