"""`predict` against recordings of real GPUs, and against real steps on the CPU."""

from __future__ import annotations

from typing import Any

from benchmarks._record import median
from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance
from benchmarks.predict import TIMED, table

_SECONDS = dict(zip(TIMED, (6, 30), strict=True))
_GIB = 4


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Tables, goals, and what has not been measured."""
    document = stored["predict"]
    results: dict[str, Any] = document["results"]
    cases = results["fakes"]
    models = list(dict.fromkeys(case["model"] for case in cases))
    optimizers = list(dict.fromkeys(case["optimizer"] for case in cases))
    precisions = list(dict.fromkeys(case["precision"] for case in cases))
    return f"""\
Recordings of the allocator on real GPUs are replayed through the simulator: every address, and
every new segment. A training that was recorded there is predicted from its model. Then a step
with fake tensors is compared with the same step with real ones on the CPU, for {len(models)}
models ({", ".join(models)}) × {", ".join(optimizers)} × {", ".join(precisions)}. Times are whole
commands, imports included.

{table(results)}
{_goals(results["times"])}
{provenance(document, packages=("torch", "timm", "transformers", "monai"))}"""


def _goals(times: dict[str, Any]) -> str:
    asked = [
        Goal(
            f"{name}: at most {_SECONDS[name]} s",
            {name: median(found["prediction"]["seconds"])},
            lambda value, most=_SECONDS[name]: value <= most,  # type: ignore[misc]
            "{:.1f} s".format,
        )
        for name, found in times.items()
    ]
    memory = {
        name: max(max(one["peak_mib"]) for one in found.values()) / 1024
        for name, found in times.items()
    }
    return goals(
        *asked,
        Goal(f"less than {_GIB} GiB of memory", memory, lambda v: v < _GIB, "{:.2f} GiB".format),
    )
