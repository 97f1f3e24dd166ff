"""`fit` beside the searches of Lightning and Accelerate."""

from __future__ import annotations

from typing import Any

from benchmarks.fit import FRESH, LEAST_EPOCHS, LEAST_STEPS, PEERS, table
from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance

_PEERS = ("Lightning's power search", "Lightning's binary search", "Accelerate")


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Tables, goals, and why some are missed."""
    document = stored["fit"]
    results: dict[str, Any] = document["results"]
    return f"""\
{len(results)} kinds of workload under an enforced ceiling of {document["limit_bytes"] / 2**30:g}
GiB, beside Lightning's `BatchSizeFinder` and Accelerate's `find_executable_batch_size` on the
same step under the same ceiling. *True largest* is the largest size at which {FRESH} of {FRESH}
new processes train {LEAST_EPOCHS} whole epochs (at least {LEAST_STEPS} steps) in a plain loop
without rightbatch; brackets hold the share of it that was found. *Epochs survived* counts whole
shuffled epochs, each in a new process. *Processes* and *seconds* are without and with the default
margin. *÷ decisive probe* divides by the time of one process that trains at the true largest
size.

{table(results)}
{_goals(results)}
{_reasons(results)}
{provenance(document, packages=("torch", "lightning", "accelerate", "ultralytics"))}"""


def _goals(results: dict[str, Any]) -> str:
    def each(figure: Any) -> dict[str, float]:
        return {name: figure(r) for name, r in results.items()}

    def share(which: str) -> dict[str, float]:
        return each(lambda r: r[which]["batch_size"] / r["true_largest"]["batch_size"])

    def survived(which: str) -> dict[str, float]:
        return each(
            lambda r: (
                sum(run["outcome"] == "ok" for run in r[which]["epochs"]) / len(r[which]["epochs"])
            )
        )

    def processes(r: dict[str, Any]) -> int:
        return max(r[which]["processes"] for which in ("no_margin", "default_margin"))

    return goals(
        Goal(
            "without margin, 0.97 to 1.02 of the true largest",
            share("no_margin"),
            lambda value: 0.97 <= round(value, 2) <= 1.02,
            "{:.2f}".format,
        ),
        Goal(
            "with the default margin, at least 0.90 of it",
            share("default_margin"),
            lambda value: round(value, 2) >= 0.90,
            "{:.2f}".format,
        ),
        Goal(
            "without margin, every epoch survives",
            survived("no_margin"),
            lambda value: value == 1,
            "{:.0%}".format,
        ),
        Goal(
            "with the default margin, every epoch survives",
            survived("default_margin"),
            lambda value: value == 1,
            "{:.0%}".format,
        ),
        Goal("at most 5 processes", each(processes), lambda value: value <= 5, "{:.0f}".format),
        Goal(
            "at most the time of Lightning's binary search",
            each(lambda r: r["no_margin"]["seconds"] / r["lightning_binsearch"]["wall_seconds"]),
            lambda value: value <= 1,
            "{:.1f} times".format,
        ),
        Goal(
            "at most 4 times a decisive probe",
            each(lambda r: r["no_margin"]["seconds"] / _decisive(r)),
            lambda value: value <= 4,
            "{:.1f} times".format,
        ),
    )


def _decisive(r: dict[str, Any]) -> float:
    seconds = sorted(r["true_largest"]["decisive_seconds"])
    return float(seconds[len(seconds) // 2])


def _reasons(results: dict[str, Any]) -> str:
    text = "Seconds compare within a row only: machines that are shared have slow minutes.\n"
    lost = [
        name
        for name, r in results.items()
        if any(run["outcome"] != "ok" for run in r["no_margin"]["epochs"])
    ]
    if lost:
        text += (
            f"\nWithout a margin a size can pass its own probe and fail later ({', '.join(lost)}): "
            "how much memory glibc's malloc holds differs between runs of the same steps. The "
            "default margin of 5% covers that.\n"
        )
    errors = sorted(
        {r[peer]["error"] for r in results.values() for peer in PEERS if "error" in r[peer]}
    )
    for peer, name in zip(PEERS, _PEERS, strict=True):
        ended = [workload for workload, r in results.items() if r[peer]["outcome"] != "ok"]
        if ended:
            text += f"\n{name} ended with an error on {', '.join(ended)}.\n"
    if errors:
        text += (
            f"\n*Out of memory* in a peer's column is that error: {', '.join(map(_code, errors))}. "
            "It is how oneDNN reports that memory ran out, and neither peer recognizes it.\n"
        )
    return text


def _code(text: str) -> str:
    return f"`{text}`"
