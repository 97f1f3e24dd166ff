"""The page of a large study in chromium: when it is first seen, and how soon an axis is switched.

`python -m benchmarks.study.page [--starts 5] [--switches 12] [--quick] [--to FOLDER]`. 500 runs of
2,000 points each are written by the project's own store first (1.8 GB, half an hour), and kept in
the temporary folder. The server is started anew for every first visit, and so is the browser.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks._record import say
from benchmarks.study.browser import chromium, noted, opened, settle, wait_for_curves
from benchmarks.study.large import Shape, large
from benchmarks.study.part import Part, figures, spread
from benchmarks.study.processes import Served, page_of

GOAL_SEEN, GOAL_SWITCH = 1.5, 0.3  # seconds
AGAIN = 3  # visits after the first one, of each kind
AXES = ("examples", "seconds", "epochs", "steps")
FULL, QUICK = Shape(seeds=50, points=2000), Shape(seeds=4, points=200)
_FIGURES = {
    "first_contentful_paint": "first contentful paint",
    "answer": "the answer is visible",
    "curves": "the first curves are visible",
}
VISITS = {
    "first": "first visit after the server's start, in a new browser",
    "new browser": "later, in a new browser",
    "same browser": "later, in the same browser",
}


def main() -> None:
    part = Part("page", __doc__, starts=5, switches=12)
    folder, made = large(QUICK if part.quick else FULL)
    rounds = part.counts["switches"]
    starts = []
    for number in range(part.counts["starts"]):
        with page_of(folder) as served:
            say(f"the server has read all of it after {served.seconds:.1f} s")
            starts.append(_start(served, rounds if number == 0 else 1))
        say(f"start {number + 1}: {_told(starts[-1]['visits'])}")
    part.save({"made": made, "starts": starts, "figures": _figures(starts)}, table)


def table(document: dict[str, Any]) -> str:
    """Show how soon the page is readable, and how soon it answers a click."""
    made = document["made"]
    introduction = (
        f"{made['runs']} runs of {made['points']:,} points with {len(made['metrics'])} metrics "
        f"each, in an MLflow database of {made['bytes'] / 1e9:.2g} GB. "
        f"{document['starts'][0]['browser']} at 1400 × 900. The page measures its own times, from "
        "the navigation or the click to the end of the frame that shows the result; median "
        "(minimum to maximum)."
    )
    return figures(document, introduction, _rows(document["figures"]))


def _start(served: Served, rounds: int) -> dict[str, Any]:
    """A first visit, switches of the axis, and later visits, at one start of the server."""
    with chromium() as browser:
        page = opened(browser)
        visits = [{"visit": "first"} | _visit(page, served.url)]
        switches = [{"round": number} | one for number in range(rounds) for one in _round(page)]
        visits += [{"visit": "same browser"} | _visit(page, served.url) for _ in range(AGAIN)]
        version = f"Chromium {browser.version}"
    for _ in range(AGAIN):
        with chromium() as browser:
            visits.append({"visit": "new browser"} | _visit(opened(browser), served.url))
    return {
        "browser": version,
        "reading_seconds": served.seconds,
        "visits": visits,
        "switches": switches,
    }


def _visit(page: Any, url: str) -> dict[str, Any]:
    page.goto("about:blank")
    page.goto(url, wait_until="commit")
    wait_for_curves(page)
    settle(page)
    found: dict[str, Any] = page.evaluate(
        """() => ({
          ...window.benchmark.seen,
          first_contentful_paint:
            performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null,
          requests: performance.getEntriesByType('resource').map(one => ({
            name: new URL(one.name).pathname + new URL(one.name).search,
            began: one.startTime, ended: one.responseEnd, bytes: one.decodedBodySize,
          })),
        })"""
    )
    return found


def _round(page: Any) -> list[dict[str, Any]]:
    """Each axis once, clicked at as a person does; `all` is when the last chart was redrawn."""
    for axis in AXES:
        page.locator("#along label", has_text=axis).click()
        settle(page)
    found = noted(page)
    page.evaluate("() => { benchmark.switched = []; benchmark.drawn = [] }")
    missing = set(AXES) - {one["axis"] for one in found["switched"]}
    if missing:
        raise RuntimeError(f"the main chart was not redrawn along {missing}")
    switches = found["switched"]
    for one, following in zip(switches, [*switches[1:], None], strict=True):
        until = following["clicked"] if following else float("inf")
        drawn = [each["at"] for each in found["drawn"] if one["clicked"] <= each["at"] < until]
        one |= {"milliseconds": one["seen"] - one["clicked"], "all": max(drawn) - one["clicked"]}
    return switches


def _figures(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """All in seconds. The first round of each start is of a page that was just opened."""
    visits = [visit for start in starts for visit in start["visits"]]
    seen = {
        kind: {
            figure: [visit[figure] / 1000 for visit in visits if visit["visit"] == kind]
            for figure in _FIGURES
        }
        for kind in VISITS
    }
    switches = [one for start in starts for one in start["switches"]]
    by_axis = {
        axis: {
            when: [
                one["milliseconds"] / 1000
                for one in switches
                if one["axis"] == axis and (one["round"] > 0) == (when == "later")
            ]
            for when in ("first", "later")
        }
        for axis in AXES
    }
    return {
        "reading": [start["reading_seconds"] for start in starts],
        "seen": seen,
        "switching": by_axis,
        "all_charts": [one["all"] / 1000 for one in switches],
    }


def _rows(figures: dict[str, Any]) -> list[str]:
    reading = spread(figures["reading"])
    rows = [f"| reading the store, before the server prints its address | {reading} | |"]
    for kind, told in VISITS.items():
        for figure, name in _FIGURES.items():
            goal = f"≤ {GOAL_SEEN} s" if figure == "curves" else ""
            rows.append(f"| {told}: {name} | {spread(figures['seen'][kind][figure])} | {goal} |")
    for axis, found in figures["switching"].items():
        for when, values in found.items():
            rows.append(
                f"| switch to {axis}, {'the first time' if when == 'first' else 'later'} | "
                f"{spread(values, 'ms', 1000)} | ≤ {1000 * GOAL_SWITCH:.0f} ms |"
            )
    rows.append(
        "| all charts near the screen have switched | "
        f"{spread(figures['all_charts'], 'ms', 1000)} | |"
    )
    return rows


def _told(visits: list[dict[str, Any]]) -> str:
    middle = {
        kind: statistics.median(one["curves"] for one in visits if one["visit"] == kind)
        for kind in VISITS
    }
    return ", ".join(f"{kind} {value:.0f} ms" for kind, value in middle.items())


if __name__ == "__main__":
    main()
