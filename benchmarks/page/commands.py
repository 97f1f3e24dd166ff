"""Commands: what the verbs answered for scripts, beside their goals, and what the agent costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks import agent
from benchmarks.commands import (
    BATCH,
    HEADROOM_STEPS,
    RUN,
    VERBS,
    is_refused,
    is_same,
    name_of,
    table,
)
from benchmarks.commands_headroom import WIDEST, Headroom, compare, widths
from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance

_KNOWN, _COVERED = 0.8, 0.9


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the goals, and the tables."""
    document = stored["commands"]
    scripts, public = document["scripts"], document.get("public", {})
    options = {"run": RUN, **VERBS}
    said = "; ".join(f"`{verb} {' '.join(given)}`" for verb, given in options.items())
    return f"""\
Scripts as people write them ([the gallery](../tests/commands/gallery)), each alone and under
`rightbatch run` with `{{batch}}` = {BATCH}, and public ones. {said}. Where the table says *the
largest allowed*, `--max-batch` (64, or 16 for public scripts) ended `fit`; *the data set*: nothing
larger could be trained. *Headroom* is what `run --steps {HEADROOM_STEPS}` says would fit.

{_goals({**scripts, **public}, stored["agent"]["results"])}
{table(scripts)}
{provenance(document)}
{_public(public)}
{_agent(stored["agent"]["results"])}"""


def _goals(scripts: dict[str, Any], about_agent: dict[str, Any]) -> str:
    compared = {name: compare(found) for name, found in scripts.items()}
    ran = {name: found for name, found in scripts.items() if _ran_alone(found)}
    answered = [
        Goal(
            f"`{verb}` answers{', or refuses by name' if verb in ('tune', 'study') else ''}"
            + _not_run(sum(verb not in found for found in ran.values())),
            {
                name_of(name): _is_answered(found[verb], verb in ("tune", "study"))
                for name, found in scripts.items()
                if verb in found and _ran_alone(found)
            },
            bool,
            lambda _: "no answer",
        )
        for verb in VERBS
    ]
    noise = list(map(agent.overlaps, about_agent["noise"]["found"]))
    return goals(
        Goal(
            "`run` ends as the script does, with a report",
            {
                name_of(name): float(
                    not any(found["exit_codes"]) and bool(found["report"].get("steps"))
                )
                for name, found in ran.items()
            },
            bool,
            lambda _: "no report",
        ),
        Goal(
            "losses and weights are equal bit for bit",
            {name_of(name): float(is_same(found)) for name, found in ran.items()},
            bool,
            lambda _: "differs",
        ),
        *answered,
        *_headroom_goals(compared[name] for name in ran),
        _share("noise scale of `run` overlaps that of the loop's own gradients", noise, 0.9),
    )


def _headroom_goals(compared: Iterable[Headroom]) -> list[Goal]:
    """Goals of the interval that `run` says would fit."""
    compared = [each for each in compared if each.is_measured]
    beside = [each for each in compared if each.is_known and each.is_comparable]
    found = [_share("headroom of `run` is known", [each.is_known for each in compared], _KNOWN)]
    if known := widths(compared):
        text = f"headroom's interval is at most {WIDEST:.0%} wide"
        widest = {"the widest": max(known)}
        found.append(Goal(text, widest, lambda width: width <= WIDEST, "{:.1%}".format))
    if beside:
        text = "headroom's interval covers what memory let `fit` find"
        found.append(_share(text, [each.covers for each in beside], _COVERED))
    return found


def _share(text: str, each: list[bool], least: float) -> Goal:
    """A goal that a share of all cases is true."""
    return Goal(
        f"{text}, in at least {least:.0%}",
        {"share": sum(each) / max(len(each), 1)},
        lambda share: share >= least,
        lambda _: f"{sum(each)} of {len(each)}",
    )


def _not_run(count: int) -> str:
    return f" ({count} not run)" if count else ""


def _ran_alone(found: dict[str, Any]) -> bool:
    return bool(found.get("exit_codes")) and not found["exit_codes"][0]


def _is_answered(found: dict[str, Any], may_refuse: bool) -> float:
    answer = found["answer"]
    runs = answer.get("runs", [])
    is_answered = answer.get("batch_size") is not None or (
        bool(runs) and all(run["status"] == "finished" for run in runs)
    )
    return float(is_answered or (may_refuse and is_refused(found)))


def _public(public: dict[str, Any]) -> str:
    if not public:
        return ""
    abouts = {"results": {name: {"about": found["about"]} for name, found in public.items()}}
    commands = "".join(
        f"- {name}: `{found['command']}`, of blob `{found['blob'][:12]}`\n"
        for name, found in public.items()
    )
    return f"""\
Public scripts, unmodified, on tiny data (`python -m benchmarks.commands --scripts DIR`). Compared
are the losses that they print.

{table(public)}
<details><summary>Their commands</summary>

{commands}
</details>

{provenance(abouts, packages=("torch", "torchvision", "transformers", "accelerate"))}"""


def _agent(results: dict[str, Any]) -> str:
    found, cost = results["noise"]["found"], results["cost"]["found"]
    overlapping = sum(map(agent.overlaps, found))
    same = max(abs(agent.extra(one["mean_seconds"], "again")[0]) for one in cost)
    return f"""\
The noise scale of `run`, of loops with one micro-batch per step and with four, against gradients
of all parameters in the same training, from eight parts of the batch: the intervals overlap in
{overlapping} of {len(found)}. The agent's cost in a step is in processor time, from
{agent.ROUNDS} runs of each kind in turns (the median, the least and the most). Loops without an
agent differ from themselves by up to {same:.0%} here, so that the goal (1% or 0.2 ms of a step) is
neither met nor missed by these figures.

{agent.table(results)}
{provenance(results["cost"]["about"])}"""
