"""GPUs by name: memory, compute capability, and where each figure was read (`gpus.csv`)."""

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
"""Of the advertised memory, where no report of what CUDA shows was found: an assumption, at the
lower end of the reports in the table that have none of ECC's share (0.97 to 0.99)."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU. `usable_bytes` is what CUDA reports in total; `is_verified` says that its
    memory and capability were read in the sources that `gpus.csv` names."""

    name: str
    kind: str
    memory_bytes: int
    usable_bytes: int
    capability: float
    is_unified: bool
    is_verified: bool

    def __str__(self) -> str:
        return f"{self.name} ({format_bytes(self.usable_bytes)})"


@cache
def catalogue() -> tuple[GPU, ...]:
    """Every GPU in the table, in its order."""
    text = files("rightbatch._predict").joinpath("gpus.csv").read_text(encoding="utf-8")
    return tuple(_gpu(row) for row in csv.DictReader(text.splitlines()))


def find_gpu(name: str) -> GPU:
    """The GPU called `name`; case, spaces, dashes and NVIDIA's own name do not matter.

    Raises:
        UsageError: if there is none, or several; the message lists the nearest.
    """
    wanted = _plain(name)
    for gpu in catalogue():
        if _plain(gpu.name) == wanted:
            return gpu
    starting = [gpu for gpu in catalogue() if wanted and _plain(gpu.name).startswith(wanted)]
    sizes = {(gpu.usable_bytes, gpu.capability) for gpu in starting}
    if len(sizes) == 1:
        return starting[0]
    if starting:
        near = [gpu.name for gpu in starting]
        raise UsageError(f"{name!r} is several GPUs; say which: {', '.join(near)}")
    names = {_plain(gpu.name): gpu.name for gpu in catalogue()}
    near = [names[key] for key in difflib.get_close_matches(wanted, names, 5, 0.4)]
    raise UsageError(
        f"no GPU called {name!r} is known; the nearest are {', '.join(near) or 'none'}. "
        "`--memory 24GiB` asks for a size instead, `--gpu all` lists every one"
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
        row["unified"] == "yes",
        row["verified"] == "yes",
    )


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())
