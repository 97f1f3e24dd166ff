"""Every verb on every kind of training in tests/zoo: the right answer, or a refusal by name.

A kind is a small training after public reports. `steps` runs each verb's steps in this process
(`tests/zoo/test_kinds.py` does so for one verb of each kind), the other parts are the verbs as a
user calls them. A cell is `answered`, `refused` (a `UsageError`, which names the thing and the way
round), `own` (the kind's own error at a size that was asked for), or `failed`. `--only KIND,...`
measures some kinds; what is stored of the others is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import rightbatch
from benchmarks._record import RESULTS, save, say

ZOO = Path(__file__).parents[1] / "tests" / "zoo"
sys.path.insert(0, str(ZOO))  # its modules import each other as files beside each other

import kinds_lightning  # noqa: E402
import kinds_transformers  # noqa: E402
import test_kinds as steps  # noqa: E402

KINDS: Mapping[str, Callable[[], Any]] = {
    **steps.KINDS,
    **{f"lightning: {kind}": make for kind, make in kinds_lightning.KINDS.items()},
    **{f"transformers: {kind}": make for kind, make in kinds_transformers.KINDS.items()},
}

_QUIET: dict[str, Any] = {"progress": False}
_LIMIT: dict[str, Any] = _QUIET | {"device": "cpu", "memory": "1GiB"}


def fit(workload: str) -> str:
    found = rightbatch.fit(workload, max_batch=24, **_LIMIT)
    return "; ".join([f"{found.batch_size}", *found.notes])


def inference(workload: str) -> str:
    return f"{rightbatch.fit(workload, inference=True, max_batch=24, **_LIMIT).batch_size}"


def predict(workload: str) -> str:
    found = rightbatch.predict(workload, batch=12, memory="4GiB", remedies=False, **_QUIET)
    return "; ".join([f"{found.reserved_peak_bytes / 2**20:.0f} MiB", *found.notes])


def tune(workload: str) -> str:
    found = rightbatch.tune(workload, budget="6s", max_batch=24, **_LIMIT)
    return f"{found.batch_size}: {found.reason}"


def train(workload: str) -> str:
    """Train an epoch, and resume for another."""
    with tempfile.TemporaryDirectory() as folder:
        options = _LIMIT | {"batch": 12, "micro_batch": 6, "out": folder}
        rightbatch.train(workload, epochs=1, **options)
        found = rightbatch.train(workload, epochs=2, resume=True, **options)
        lines = (Path(folder) / "history.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    if len(losses) != 2 or not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"losses {losses}")
    return f"{found.steps} updates, loss {losses[-1]:.4f}"


def study(workload: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        options = _LIMIT | {"batches": [6, 12], "seeds": 1, "epochs": 1, "out": folder}
        found = rightbatch.study(workload, **options)
    return ", ".join(f"{run.batch_size} {run.status}" for run in found.runs)


VERBS: Mapping[str, Callable[[str], str]] = {
    each.__name__: each for each in (fit, inference, predict, tune, train, study)
}


def cell(kind: str, run: Callable[[], object]) -> dict[str, Any]:
    """What a verb, or its steps, say of one kind."""
    started = time.monotonic()
    own = steps.OWN_ERROR.get(kind, {}).values()
    try:
        found, outcome = str(run() or ""), "answered"
    except rightbatch.UsageError as error:
        found, outcome = str(error), "refused"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        outcome = "own" if any(said in found for said in own) else "failed"
    return {"outcome": outcome, "found": found[:600], "seconds": time.monotonic() - started}


def cells(part: str, kind: str) -> dict[str, dict[str, Any]]:
    """One cell of a verb, or of the steps of four verbs, by name."""
    if part != "steps":
        factory = KINDS[kind]
        workload = f"{factory.__code__.co_filename}:{factory.__name__}"
        return {part: cell(kind, lambda: VERBS[part](workload))}
    found = {}
    for name, verb in steps.VERBS.items():
        torch.compiler.reset()
        torch.manual_seed(0)
        found[f"steps of {name}"] = cell(kind, lambda verb=verb: verb(KINDS[kind]))
    return found


def table(kinds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The outcomes of each kind; a dash is a cell that was not run."""
    columns = list(dict.fromkeys(name for cells in kinds.values() for name in cells))
    lines = [f"| kind | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for kind, cells in kinds.items():
        marks = (cells[name]["outcome"] if name in cells else "–" for name in columns)
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=["steps", *VERBS], metavar="PART")
    parser.add_argument("--only", default="", help="kinds, separated by commas")
    arguments = parser.parse_args()
    path = RESULTS / "zoo.json"
    stored = json.loads(path.read_text())["kinds"] if path.exists() else {}
    wanted = set(filter(None, arguments.only.split(",")))
    warnings.simplefilter("ignore")
    for part in arguments.parts:
        for kind in KINDS:
            if not wanted or kind in wanted:
                for name, found in cells(part, kind).items():
                    stored.setdefault(kind, {})[name] = found
                    text = f"{found['outcome']} in {found['seconds']:.0f} s: {found['found'][:300]}"
                    say(f"{kind}, {name}: {text}")
                save("zoo", {"kinds": stored}, "")
    print(table(stored))


if __name__ == "__main__":
    main()
