"""The measurements: brackets of batch sizes of timm models, and bytes of fine-tunings."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEED = 0
GPUS = {
    "RTX 3090": "RTX 3090",
    "RTX 4090": "RTX 4090",
    "RTX 5090": "RTX 5090",
    "RTX PRO 6000 Max-Q": "RTX PRO 6000 Blackwell",  # the same 96 GB
    "NVIDIA L40S": "L40S",
}
"""The GPUs of the measurements, by their names in the catalogue."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    `kind` is `train`, `infer` or `peft`. A batch of `ran` examples ran and one of `failed` did not;
    both are 0 for a fine-tuning, whose `peak_bytes` were measured. `more` has its configuration.
    """

    kind: str
    model: str
    gpu: str
    image_size: int = 0
    layout: str = "nchw"
    ran: int = 0
    failed: int = 0
    peak_bytes: int = 0
    more: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def fast_norm(self) -> bool:
        """Whether normalization layers ran in half precision (`--fast-norm` of timm's benchmark).

        The source does not say so; the rows do. On the RTX 4090, models with layer or group norms
        ran at sizes that the RTX 5090, with more memory, did not take (vit_large_r50_s32_384,
        mobilenetv5_base, beit3_giant_patch14_336).
        """
        return self.kind == "infer" and self.gpu == "RTX 4090"

    @property
    def step(self) -> tuple[Any, ...]:
        """The rows with the same step differ in the GPU only, so it is followed once."""
        norm = ("fast norm",) if self.fast_norm else ()
        return self.kind, self.model, self.image_size, self.layout, *norm

    @property
    def key(self) -> str:
        """The name of the row in the results."""
        return "/".join(map(str, (*self.step, self.gpu)))

    @property
    def half(self) -> str:
        """Return `fit` or `test`, by the architecture, so that no relative is in the other half.

        Stored with each row, so that a band can be derived from the errors of one half and tested
        on the other.
        """
        match = re.match("[a-z]+", self.model)
        digest = hashlib.sha256((match[0] if match else self.model).encode()).digest()
        return "fit" if digest[0] % 2 else "test"


def read(folder: Path) -> list[Row]:
    """Return all rows of a folder that have both ends of a bracket, or measured bytes."""
    rows: list[Row] = []
    with (folder / "timm_train_rtx3090.csv").open() as file:
        rows += [_bracket("train", "RTX 3090", one, one["layout"]) for one in csv.DictReader(file)]
    with (folder / "timm_infer.csv").open() as file:
        rows += [_bracket("infer", one["gpu"], one, "nchw") for one in csv.DictReader(file)]
    for line in (folder / "peft_llama32_3b_l40s.jsonl").read_text().splitlines():
        one = json.loads(line)
        rows.append(
            Row("peft", one["experiment"], one["gpu"], peak_bytes=one["max_bytes"], more=one)
        )
    return [row for row in rows if row.failed or row.peak_bytes]


def grouped(rows: Iterable[Row], seed: int = SEED) -> list[list[Row]]:
    """Return the rows by step, in a random order that depends on `seed` only."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.step, []).append(row)
    groups = [found[step] for step in sorted(found)]
    random.Random(seed).shuffle(groups)
    return groups


def _bracket(kind: str, gpu: str, one: dict[str, str], layout: str) -> Row:
    failed = int(one["failed"] or 0)
    return Row(kind, one["model"], gpu, int(one["image_size"]), layout, int(one["ran"]), failed)
