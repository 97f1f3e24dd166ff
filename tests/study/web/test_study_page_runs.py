"""The page's table of runs: filtered, sorted, compared, looked at closely and linked to."""

from __future__ import annotations

import pytest
from page_looks import Look, expect, figure, names
from study_sites import MadeUp

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("uvicorn")


def test_a_link_restores_the_view(look: Look) -> None:
    with look.at(MadeUp()) as page:
        page.get_by_label("Metric").first.select_option("loss")
        page.get_by_label("epochs", exact=True).check()
        page.get_by_label("logarithmic scale of the metric").check()
        page.get_by_role("button", name="batch 32", exact=True).click()
        page.get_by_role("searchbox").fill("seed=1")
        page.get_by_role("button", name="Time", exact=True).click()
        page.get_by_role("button", name="Time", exact=True).click()
        for name in ("batch 8, seed 1", "batch 64, seed 1"):
            page.get_by_label(f"Select {name}").check()
        link, order = page.url, names(page)
    with look.at(link) as page:
        expect(figure(page, "loss").locator(".xtitle")).to_have_text("epochs")
        expect(page.get_by_label("logarithmic scale of the metric")).to_be_checked()
        hidden = page.get_by_role("button", name="batch 32", exact=True)
        expect(hidden).to_have_attribute("aria-pressed", "false")
        expect(page.get_by_role("searchbox")).to_have_value("seed=1")
        expect(page.get_by_role("heading", name="Differences")).to_be_visible()
        assert names(page) == order


def test_runs_are_filtered_and_sorted(look: Look) -> None:
    made = MadeUp(out_of_memory=[256])
    made.runs_[4] |= {"status": "diverged", "reason": "the loss was NaN", "reached": None}
    with look.at(made, pictures=False) as page:
        rows = page.locator("#rows tr")
        expect(rows).to_have_count(18)
        page.get_by_role("searchbox").fill("batch=16 seed=1")
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text("the loss was NaN")
        expect(page.locator("#runs-note")).to_have_text("1 of 18 runs match")
        page.get_by_role("searchbox").fill("nan")
        expect(rows).to_have_count(1)
        page.get_by_role("searchbox").fill("there is none")
        page.get_by_role("button", name="Show all runs").click()
        page.get_by_role("button", name="out of memory 3").click()
        expect(rows).to_have_count(3)
        page.get_by_role("button", name="out of memory 3").click()
        head = page.locator("th", has=page.get_by_role("button", name="To target"))
        page.get_by_role("button", name="To target").click()
        expect(head).to_have_attribute("aria-sort", "ascending")
        expect(rows.first).to_contain_text("batch 64, seed 0")
        expect(rows.last).to_contain_text("batch 256")  # what has none is last,
        page.get_by_role("button", name="To target").click()
        expect(rows.first).to_contain_text("batch 8, seed 2")
        expect(rows.last).to_contain_text("batch 256")  # either way
        page.get_by_role("button", name="To target").click()
        assert names(page) == [run["name"] for run in made.runs_]


def test_only_what_differs_between_runs_is_shown(look: Look) -> None:
    made = MadeUp(sizes=(8, 64))
    with look.at(made, pictures=False) as page:
        page.get_by_label("Select batch 8, seed 0").check()
        expect(page.locator("#picked-note")).to_contain_text("select another")
        page.get_by_label("Select batch 64, seed 0").check()
        diff = page.locator("#diff-table")
        expect(diff.locator("thead th")).to_have_text(["batch 8, seed 0", "batch 64, seed 0"])
        rate = diff.locator("tr", has=page.get_by_role("rowheader", name="batch_size", exact=True))
        expect(rate.locator("td")).to_have_text(["8", "64"])
        expect(diff.get_by_role("rowheader", name="seed", exact=True)).to_have_count(0)
        expect(diff.get_by_role("rowheader", name="optimizer", exact=True)).to_have_count(0)
        page.get_by_label("also show equal values").check()
        expect(diff.get_by_role("rowheader", name="optimizer", exact=True)).to_be_visible()
        page.get_by_role("button", name="Unselect all").click()
        expect(page.get_by_role("heading", name="Differences")).to_be_hidden()


def test_a_run_is_looked_at_closely_with_keys_alone(look: Look) -> None:
    with look.at(MadeUp(sizes=(8, 64))) as page:
        name = page.get_by_role("button", name="batch 64, seed 1")
        name.focus()
        page.keyboard.press("Enter")
        detail = page.get_by_role("dialog", name="batch 64, seed 1")
        expect(detail.get_by_text("all epochs done")).to_be_visible()
        expect(detail.locator("#parameters")).to_contain_text("optimizersgd")
        expect(detail.get_by_text("micro-batch 64 to 32")).to_be_visible()
        expect(detail.locator(".plot[data-drawn]")).to_be_visible()
        detail.get_by_label("Metric").select_option("noise_scale")
        expect(detail.locator("figcaption")).to_contain_text("noise_scale against steps")
        link = page.url
        page.keyboard.press("Escape")
        expect(detail).to_be_hidden()
        expect(name).to_be_focused()
    with look.at(link) as page:
        expect(page.get_by_role("dialog", name="batch 64, seed 1")).to_be_visible()


def test_many_runs_are_shown_a_hundred_at_first(look: Look) -> None:
    made = MadeUp(sizes=(8, 16, 32), seeds=50, places=10)
    with look.at(made, pictures=False) as page:
        expect(page.locator("#rows tr")).to_have_count(100)
        page.get_by_role("button", name="Show all 150 runs").click()
        expect(page.locator("#rows tr")).to_have_count(150)
