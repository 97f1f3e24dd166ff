"""The page for everybody: used with keys, on narrow screens, readable, and safe from names."""

from __future__ import annotations

import pytest
from page_looks import Look, expect, figure, names
from study_sites import MadeUp

from page_checks import HAS_NAME, LOW_CONTRASTS

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("uvicorn")

NASTY = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>%{y}'


def test_all_of_it_can_be_used_with_keys(look: Look) -> None:
    with look.at(MadeUp(sizes=(8, 64)), pictures=False) as page:
        expect(page.locator("#rows tr")).to_have_count(6)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="To the runs")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        expect(page.get_by_label("examples", exact=True)).to_be_checked()
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        expect(page.get_by_label("logarithmic scale of steps")).to_be_checked()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        pressed = page.get_by_role("button", name="batch 8", exact=True)
        expect(pressed).to_have_attribute("aria-pressed", "false")
        page.get_by_role("link", name="To the runs").press("Enter")
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Seed":
                break
        page.keyboard.press("Enter")
        assert names(page)[:2] == ["batch 8, seed 0", "batch 64, seed 0"]
        page.get_by_label("Select batch 8, seed 0").press("Space")
        expect(page.locator("#picked-note")).to_contain_text("1 run selected")


def test_names_reasons_and_sentences_are_text_and_nothing_else(look: Look) -> None:
    made = MadeUp(sizes=(8, 16), seeds=2, metrics=(NASTY, "loss"))
    for run in made.runs_:
        run |= {"name": f"{NASTY} {run['id']}", "status": "failed", "reason": NASTY}
        run["parameters"] = {NASTY: NASTY + run["id"]}
    made.changes |= {
        "title": NASTY,
        "target": {"metric": NASTY, "value": 0.5},
        "critical_reason": NASTY,
        "gap_sentence": NASTY,
        "answer": {"sentences": [NASTY], "first": {"seconds": 8, "steps": 16, "examples": 8}},
    }
    with look.at(made) as page:
        expect(page.locator("#title")).to_have_text(NASTY)
        expect(page.locator("#sentences li")).to_have_text(NASTY)
        curve = figure(page, NASTY)
        box = curve.locator(".plot").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 150)
        for run in made.runs_[:2]:
            page.get_by_label(f"Select {run['name']}").check()
        expect(page.locator("#diff-table")).to_contain_text(NASTY)
        page.get_by_role("button", name=made.runs_[0]["name"]).click()
        expect(page.locator("#detail-reason")).to_have_text(NASTY)
        assert page.locator("img, main script, dialog script").count() == 0
        assert page.title() == f"{NASTY} · rightbatch"


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1400, "light")])
def test_nothing_is_wider_than_the_screen_and_all_text_stands_out(
    look: Look, width: int, scheme: str
) -> None:
    """WCAG 2's contrast of 4.5 for all text that is shown."""
    made = MadeUp(sizes=tuple(2**power for power in range(2, 12)), seeds=2, out_of_memory=[2048])
    made.runs_[0] |= {"name": "a-run-with-a-very-long-name-" * 5, "reason": "x" * 300}
    made.runs_[1] |= {"status": "diverged"}
    made.runs_[2] |= {"status": "running"}
    made.changes["gap_sentence"] = "y" * 300
    link = "/#pick=run-4-0&pick=run-8-0&pick=run-16-1"
    with look.at(made, link, width=width, scheme=scheme) as page:
        figure(page, "accuracy")
        figure(page, "Peak memory, GiB")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(LOW_CONTRASTS) == []
        page.get_by_role("button", name=made.runs_[0]["name"]).click()
        expect(page.locator("#detail-facts")).to_contain_text("Micro-batch")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_chart_has_a_text_and_every_control_a_name(look: Look) -> None:
    with look.at(MadeUp(sizes=(8, 64))) as page:
        for title in ("accuracy", "Steps", "Throughput, examples per second", "Learning rate"):
            shown = figure(page, title)
            assert shown.locator("[role=img]").evaluate(
                "image => document.getElementById(image.getAttribute('aria-labelledby'))"
                ".textContent.length > 20"
            )
            shown.get_by_text("Data as a table").click()
            expect(shown.locator("tbody tr").first).to_be_visible()
        for control in page.locator("button:visible, input:visible, select:visible").all():
            assert control.evaluate(HAS_NAME), control.evaluate("element => element.outerHTML")
        assert page.locator("html").get_attribute("lang") == "en"
