"""GPUs by name: memory, compute capability, and the source of each figure (`gpus.csv`)."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from rightbatch._errors import UsageError
from rightbatch._units import format_bytes

USABLE_SHARE = 0.96
"""Share of the advertised memory that CUDA reports, for GPUs without a report: an assumption,
slightly below the reports in the table for GPUs without ECC (0.97 to 0.99)."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    `usable_bytes` is the total that CUDA reports; `is_verified` says that memory and capability
    are from the sources in `gpus.csv`.
    """

    name: str
    kind: str
    memory_bytes: int
    usable_bytes: int
    capability: float
    is_verified: bool

    def __str__(self) -> str:
        return f"{self.name} ({format_bytes(self.usable_bytes)})"


@cache
def catalogue() -> tuple[GPU, ...]:
    """Return every GPU of the table, in its order."""
    text = files("rightbatch._predict").joinpath("gpus.csv").read_text(encoding="utf-8")
    return tuple(_gpu(row) for row in csv.DictReader(text.splitlines()))


def find_gpu(name: str) -> GPU:
    """Return the GPU called `name`; case, spaces, dashes and "NVIDIA" do not matter.

    Raises:
        UsageError: if no GPU or several GPUs match; the message lists the nearest names.
    """
    wanted = _normalized(name)
    for gpu in catalogue():
        if _normalized(gpu.name) == wanted:
            return gpu
    starting = [gpu for gpu in catalogue() if wanted and _normalized(gpu.name).startswith(wanted)]
    sizes = {(gpu.usable_bytes, gpu.capability) for gpu in starting}
    if len(sizes) == 1:
        return starting[0]
    if starting:
        near = [gpu.name for gpu in starting]
        raise UsageError(f"{name!r} matches several GPUs; choose one of: {', '.join(near)}")
    names = {_normalized(gpu.name): gpu.name for gpu in catalogue()}
    near = [names[key] for key in difflib.get_close_matches(wanted, names, 5, 0.4)]
    raise UsageError(
        f"unknown GPU {name!r}; the nearest names are {', '.join(near) or 'none'}. Use "
        "`--memory 24GiB` for a memory size instead; `--gpu all` lists every GPU"
    )


def _gpu(row: dict[str, str]) -> GPU:
    memory = int(float(row["memory_gib"]) * 2**30)
    usable = int(row["usable_mib"]) * 2**20 if row["usable_mib"] else int(USABLE_SHARE * memory)
    return GPU(
        row["name"],
        row["kind"],
        memory,
        usable,
        float(row["compute_capability"]),
        row["verified"] == "yes",
    )


def _normalized(name: str) -> str:
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())
