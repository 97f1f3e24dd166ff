"""`predict` against recordings of real GPUs, and against real steps on the CPU."""

from __future__ import annotations

from typing import Any

from benchmarks._record import median
from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance
from benchmarks.predict import TIMED, table
from benchmarks.predict_public import summary
from benchmarks.predict_public.errors import band

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
{provenance(document, packages=("torch", "timm", "transformers", "monai"))}
{_public(stored["predict_public"]["lines"])}"""


def _public(lines: list[dict[str, Any]]) -> str:
    dates = sorted({line["date"][:10] for line in lines})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(sorted({line["torch"] for line in lines}))
    hits = summary.figures([line for line in lines if line["kind"] == "infer"])
    return f"""\
### GPUs that others measured

timm's published benchmark results say of a model and a GPU which batch ran and which larger one
failed, so the largest batch is in between. `python -m benchmarks.predict public --data FOLDER`
predicts them from the models, in a random order of steps: forward passes on an RTX 4090, an RTX
5090 and an RTX PRO 6000 (timm 1.0, automatic mixed precision in float16), training steps on an RTX
3090 (2022). {len(lines)} rows were predicted so far. *Position* is that of the predictions in the
bracket, 0 being the size that ran and 1 the one that failed; *unused* is the share of the size that
ran that a prediction leaves out, on average over all rows. A prediction at or above the size that
failed runs out of memory or fails for sure; below it, that is not known. Two things were inferred
from these rows, so they are not a test of them: on the RTX 4090 normalization layers are taken to
have run in half precision, which the source does not state, and depthwise convolutions in
channels_last are taken to fail from 2^31 elements on. All steps of a row take one batch that is on
the GPU, as in that benchmark; `rightbatch predict` counts a new batch for each step. The training
rows are of CUDA 11.3, which loads all kernels at once: 1,486 MiB outside the allocator, as somebody
else saw on such a GPU (pytorch #49877), instead of the 500 MiB of today's lazy loading. Seconds are
those of building and following a step and of its searches, on a machine that other programs used.
{_beside(hits)}

{summary.table(lines)}
{_band(lines)}
Measured {when} with torch {versions}, timm 1.0.31 (`pip install timm`).
"""


def _band(lines: list[dict[str, Any]]) -> str:
    """Return the band that `predict` prints, and what it is from."""
    text = (
        "The band of reserved bytes that `predict` states should hold nine of ten errors: its ends "
        "are quantiles of the distribution that makes all brackets of one half of the "
        "architectures most likely (Turnbull). On the other half, the share of rows in the band is "
        "at most that of brackets that overlap it (no bracket is narrow enough to lie inside).\n\n"
        "| measured by predicted bytes | rows | rows of the other half | overlapping |\n"
        "|---|---|---|---|\n"
    )
    found = band(line for line in lines if line["kind"] != "peft")
    assert found is not None
    return text + (
        f"| {found.low:.2f} to {found.high:.2f} | {found.rows} | {found.tested} "
        f"| {found.overlapping:.0%} |\n"
    )


def _beside(figures: dict[str, Any]) -> str:
    return (
        f"Of the inference rows that were followed, {figures['hits']} of {figures['followed']} are "
        "in their bracket."
    )


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
