"""The page of a study in a real browser: its answer and its charts."""

from __future__ import annotations

import re

import pytest
from page_looks import Look, expect, figure
from study_sites import CRITICAL, METRICS, MadeUp, Store, along, steps_to_target

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("uvicorn")

from rightbatch._study.web.app import app
from rightbatch._study.web.documents import StudyDocuments
from rightbatch._web.listening import HttpServer


def test_it_answers_at_a_glance(look: Look) -> None:
    with look.at(MadeUp(out_of_memory=[256]), pictures=False) as page:
        expect(page).to_have_title("digits · rightbatch")
        first = page.locator("#sentences li").first
        expect(first).to_have_text("Batch 64 reached accuracy 0.9 first in seconds.")
        tiles = page.locator("#tiles > div")
        expect(tiles.nth(0)).to_have_text(re.compile("Soonest *batch 64"))
        expect(tiles.nth(1)).to_have_text(re.compile("Fewest steps *batch 128"))
        expect(tiles.nth(2)).to_have_text(re.compile("Fewest examples *batch 8"))
        expect(tiles.nth(3)).to_have_text(re.compile("896 MiBbatch 64, limit 4 GiB"))
        expect(tiles.nth(4)).to_have_text(re.compile("Critical batch size100"))
        expect(page.locator("#count")).to_have_text("18 runs: 15 finished, 3 out of memory")
        expect(page.locator("#target")).to_have_text("target accuracy = 0.9")


def test_one_switch_changes_what_all_curves_are_drawn_along(look: Look) -> None:
    made = MadeUp(sizes=(8, 64))
    with look.at(made) as page:
        curve = figure(page, "accuracy")
        expect(curve.locator(".xtitle")).to_have_text("steps")
        curve.get_by_text("Data as a table").click()
        end = curve.locator("tbody tr").first.locator("td").nth(6)
        expect(end).to_contain_text(f"at {along('steps', 8, 60)[-1]:,.0f}")
        page.get_by_label("examples", exact=True).check()
        expect(curve.locator(".xtitle")).to_have_text("examples")
        expect(end).to_contain_text(f"at {along('examples', 8, 60)[-1]:,.0f}")
        noise = figure(page, "Noise scale, in examples")
        expect(noise.locator(".xtitle")).to_have_text("examples")
        page.get_by_label("seconds", exact=True).check()
        expect(noise.locator(".xtitle")).to_have_text("seconds")
        page.get_by_label("logarithmic scale of the metric").check()
        page.get_by_label("logarithmic scale of steps").check()
        expect(curve.locator(".xtitle")).to_have_text("seconds")
    assert made.asked.count("accuracy") == 1  # one document has all of it


def test_seeds_are_bands_and_a_size_that_is_hidden_is_drawn_nowhere(look: Look) -> None:
    with look.at(MadeUp(sizes=(8, 16, 32))) as page:
        curve = figure(page, "accuracy")
        lines, bands = (
            curve.locator(".scatterlayer .js-line[style*='stroke-width: 2px']"),
            (curve.locator(".scatterlayer .js-fill")),
        )
        expect(lines).to_have_count(3)
        expect(bands).to_have_count(3)
        page.get_by_role("button", name="batch 16", exact=True).click()
        expect(page.get_by_role("button", name="batch 16", exact=True)).to_have_attribute(
            "aria-pressed", "false"
        )
        expect(lines).to_have_count(2)
        expect(bands).to_have_count(2)
        steps = figure(page, "Steps")
        expect(steps.locator(".points path")).to_have_count(2)
        page.get_by_role("button", name="Show all").click()
        expect(lines).to_have_count(3)


def test_sizes_are_drawn_with_their_fit_and_those_out_of_memory_at_the_limit(look: Look) -> None:
    with look.at(MadeUp(out_of_memory=[256])) as page:
        steps = figure(page, "Steps")
        expect(steps.locator("figcaption")).to_contain_text("Fewest steps: batch 128 with 356")
        expect(steps.locator("figcaption")).to_contain_text("Not reached at 256.")
        expect(steps.locator("figcaption")).to_contain_text("Curve: the fit to 5 sizes")
        expect(steps.get_by_text(f"critical {CRITICAL:g}")).to_be_visible()
        expect(steps.locator(".points path")).to_have_count(5)
        steps.get_by_text("Data as a table").click()
        cell = steps.locator("tbody tr").first.locator("td").nth(1)
        expect(cell).to_have_text(f"{steps_to_target(8):,.0f}")
        memory = figure(page, "Peak memory, GiB")
        expect(memory.locator("figcaption")).to_have_text(
            "1.5 GiB at batch 128; limit 4 GiB, dashed; out of memory at 256, crosses."
        )
        expect(memory.get_by_text("limit", exact=True)).to_be_visible()
        expect(memory.locator(".points path")).to_have_count(6)


def test_stability_is_shown_where_it_was_measured(look: Look) -> None:
    made = MadeUp(sizes=(8, 16))
    with look.at(made) as page:
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        expect(page.get_by_role("heading", name="Stability")).to_be_hidden()
        made.metrics = (*METRICS, "sharpness_times_rate")
        made.touch()
        page.reload()
        gauge = figure(page, "Largest eigenvalue of the loss × learning rate")
        expect(gauge.get_by_text("edge of stability", exact=True)).to_be_visible()


def test_runs_that_tell_no_batch_size_have_curves_of_their_own(look: Look) -> None:
    made = MadeUp(sizes=(8,), seeds=1, metrics=("loss",))
    own = made.curves("loss")
    band = own["sizes"][0]["by"]
    own["sizes"].append({"batch_size": None, "runs": 1, "name": "train7", "by": band})
    made.runs_.append(made.runs_[0] | {"id": "train7", "name": "train7", "batch_size": None})
    made.curves = lambda metric: own  # type: ignore[method-assign]
    with look.at(made) as page:
        curve = figure(page, "loss")
        expect(curve.locator("figcaption")).to_contain_text("train7")
        expect(curve.locator(".scatterlayer .js-line")).to_have_count(2)
        page.get_by_role("button", name="no batch size").click()
        expect(curve.locator("figcaption")).not_to_contain_text("train7")


def test_charts_follow_the_theme(look: Look) -> None:
    with look.at(MadeUp(sizes=(8, 16))) as page:
        curve = figure(page, "accuracy")
        line = curve.locator(".scatterlayer .js-line[style*='stroke-width: 2px']").first
        before = line.evaluate("line => line.style.stroke")
        page.emulate_media(color_scheme="dark")
        expect(curve.locator(".plot")).to_have_attribute("data-drawn", "2")
        assert line.evaluate("line => line.style.stroke") != before


def test_a_store_of_runs_is_shown(look: Look) -> None:
    store = Store(MadeUp(places=200, out_of_memory=[256]))
    listening = HttpServer().start(app(store), "127.0.0.1", 0)
    try:
        with look.at(listening.url) as page:
            first = page.locator("#sentences li").first
            expect(first).to_contain_text("Batch size 64 reached accuracy=0.9 first in seconds")
            critical = page.locator("#tiles > div", has_text="Critical batch size").locator("dd")
            told = float(critical.first.text_content() or "")
            assert told == pytest.approx(CRITICAL, rel=0.1)
            steps = figure(page, "Steps")
            steps.get_by_text("Data as a table").click()
            cell = steps.locator("tbody tr").first.locator("td").nth(1)
            median = float((cell.text_content() or "").replace(",", ""))
            assert median == pytest.approx(steps_to_target(8), rel=0.1)
            page.get_by_role("button", name="batch 64, seed 1").click()
            expect(page.locator("#detail .plot[data-drawn]")).to_be_visible()
    finally:
        listening.stop()
    with pytest.raises(ValueError, match="no run has logged 'los'"):
        StudyDocuments(store).curves("los")
