"""The whole page: its introduction, its contents, and a section for each verb."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.page import (
    commands,
    elastic,
    fit,
    kinds,
    noise,
    predict,
    serve,
    startup,
    study,
    tune,
)

_WIDTH = 110

Results = dict[str, dict[str, Any]]
"""What is stored, by the name of the file."""

_INTRODUCTION = """\
# Benchmarks

<!-- Written by `python -m benchmarks.page` from benchmarks/results; edits here are lost. -->

Every figure on this page is computed from [`benchmarks/results`](../benchmarks/results), which has
the raw samples. `make benchmark` measures again, `make page` rewrites the page, and `make test`
fails where page and results differ. In the tables, *÷* is a ratio, *A/A* is the same configuration
measured against itself (the noise of the comparison), and brackets hold 95% intervals unless the
text says otherwise. Each section ends with its date: its figures are of the code of that day.
"""

SECTIONS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "fit": ("the largest batch, beside other searches", fit.section),
    "Commands": ("scripts as they are, watched and fitted", commands.section),
    "Kinds": ("other people's trainings, with every verb", kinds.section),
    "predict": ("memory, against recordings of GPUs and real steps", predict.section),
    "Elastic": ("cost, exactness, and what a failure costs", elastic.section),
    "tune": ("the chosen size, against trainings at every size", tune.section),
    "NoiseScale": ("the estimate, against exact noise scales", noise.section),
    "study": ("the shipped study, its page, kills", study.section),
    "serve": ("rates in time, faults, a long run", serve.section),
    "Start": ("start-up time of the command line", startup.section),
}


def render(folder: Path) -> str:
    """Make the page of the results in `folder`.

    Raises:
        FileNotFoundError: if `folder` holds no results.
        KeyError: if a benchmark's results are missing.
    """
    stored: Results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }
    for path in sorted(folder.glob("predict_public.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        stored[path.stem] = {
            "lines": list({line["key"]: line for line in map(json.loads, lines)}.values())
        }
    if not stored:
        raise FileNotFoundError(f"no results in {folder}; `make benchmark` measures them")
    parts = [_INTRODUCTION]
    parts += [
        "\n".join(f"- [{name}](#{name.lower()}): {what}" for name, (what, _) in SECTIONS.items())
        + "\n"
    ]
    parts += [f"## {name}\n\n{section(stored)}" for name, (_, section) in SECTIONS.items()]
    return _wrapped("\n".join(parts))


def _wrapped(text: str) -> str:
    """Wrap the paragraphs, so that a changed figure changes one line; tables stay as they are."""
    blocks = [
        block
        if block.lstrip().startswith(("|", "#", "-", ">", "<"))
        else textwrap.fill(
            " ".join(block.split()), _WIDTH, break_long_words=False, break_on_hyphens=False
        )
        for block in re.split(r"\n{2,}", text.strip())
    ]
    return "\n\n".join(blocks) + "\n"
