"""docs/benchmarks.md says what benchmarks/results say, and every figure on it comes from there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def page() -> Any:
    """The command `python -m benchmarks.page`, in this process."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.page.__main__ import main
    finally:
        sys.path.remove(str(ROOT))
    return main


def test_the_page_is_what_the_results_say(page: Callable[[list[str]], int]) -> None:
    assert page(["--check"]) == 0, "run: make page"


def test_a_result_that_changed_is_noticed_and_written(
    page: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = shutil.copytree(RESULTS, tmp_path / "results")
    file = results / "fit.json"
    document = json.loads(file.read_text())
    document["results"]["bert"]["default_margin"]["batch_size"] = 84
    file.write_text(json.dumps(document))
    mine = tmp_path / "benchmarks.md"
    mine.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    options = ["--results", str(results), "--page", str(mine)]

    assert page([*options, "--check"]) == 1
    difference = capsys.readouterr().err
    assert "84 (0.99)" in difference
    assert "84 (0.99)" not in mine.read_text()

    assert page(options) == 0
    assert page([*options, "--check"]) == 0
    goal = next(line for line in mine.read_text().splitlines() if "at least 0.90 of it" in line)
    assert goal.endswith("met in all 6 cases |")


def test_goals_name_the_cases_that_miss_them(page: Any) -> None:
    from benchmarks.page.goals import Goal

    def row(**found: float) -> str:
        return Goal("at most 2", found, lambda value: value <= 2, "{:.1f}".format).row()

    assert row(one=1.0, two=2.0) == "| at most 2 | met in all 2 cases |"
    assert row(one=1.0, two=2.5) == "| at most 2 | met in 1 of 2 cases; missed: two (2.5) |"
    assert row(one=3.0) == "| at most 2 | missed: 3.0 |"


def test_parts_that_were_measured_on_unlike_machines_name_both(page: Any) -> None:
    from benchmarks.page.provenance import provenance

    def about(date: str, cores: int) -> dict[str, Any]:
        machine = {"processor": "X", "cores": cores, "memory_bytes": 2**30, "system": "Linux 6"}
        return {
            "date": date,
            "machine": machine | {"python": "3.11.7"},
            "versions": {"torch": "2.14.1"},
        }

    parts = {"a": {"about": about("2026-01-02T00", 1)}, "b": {"about": about("2026-03-04T00", 2)}}
    said = provenance(about("2026-05-06T00", 4) | {"results": parts})
    assert said.startswith("Measured 2026-01-02 to 2026-03-04 on X (1 core, 1.0 GiB, Linux")
    assert "and X (2 cores, " in said
    assert "4 cores" not in said
