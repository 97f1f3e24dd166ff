"""The page of a study in a real browser, as it is looked at, used with keys and cut off."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from study_sites import CRITICAL, METRICS, MadeUp, Store, along, ask, site, steps_to_target

from page_checks import HAS_NAME, LOW_CONTRASTS

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("uvicorn")

from rightbatch._study.web.app import app
from rightbatch._study.web.documents import StudyDocuments
from rightbatch._web.listening import HttpServer

NASTY = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>%{y}'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Look:
    """Opens pages, all in one tab: what a browser has compiled there it keeps."""

    page: Any
    url: str
    server: dict[str, MadeUp]

    @contextlib.contextmanager
    def at(
        self,
        study: MadeUp | str,
        path: str = "/",
        *,
        width: int = 1400,
        scheme: str = "light",
        pictures: bool = True,
    ) -> Iterator[Any]:
        """The page of a study, or at a URL; what it complains of, and what it asks of other
        machines, fails the test. Without pictures, Plotly does not come, which takes long."""
        if isinstance(study, str):
            url = study
        else:
            self.server["study"] = study
            url = self.url + path
        wrong: list[str] = []
        page = self.page
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        home = urlsplit(url).netloc

        def asked(request: Any) -> None:
            if urlsplit(request.url).netloc not in (home, ""):
                wrong.append(f"asked {request.url}")

        def said(message: Any) -> None:
            # a browser notes every answer of 4xx and 5xx, and every failed connection, by itself
            if message.type in ("error", "warning") and "Failed to load" not in message.text:
                wrong.append(message.text)

        def raised(error: Any) -> None:
            wrong.append(str(error))

        listeners = {"request": asked, "console": said, "pageerror": raised}
        for event, listener in listeners.items():
            page.on(event, listener)
        if not pictures:
            page.route("**/plotly-*.js", lambda route: route.abort())
        try:
            page.goto(url)
            yield page
        finally:
            page.unroute_all()
            page.goto("about:blank")
            for event, listener in listeners.items():
                page.remove_listener(event, listener)
        assert wrong == []


class Behind:
    """The documents of whichever study is looked at."""

    def __init__(self, server: dict[str, MadeUp]) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server["study"], name)


@pytest.fixture(scope="module")
def look() -> Iterator[Look]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    server: dict[str, MadeUp] = {}
    playwright.expect.set_options(timeout=15_000)
    with playwright.sync_playwright() as started, site(Behind(server)) as url:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(15_000)
        yield Look(page, url, server)
        browser.close()
    playwright.expect.set_options(timeout=5_000)


def expect(place: Any) -> Any:
    from playwright.sync_api import expect as expected

    return expected(place)


def figure(page: Any, title: str) -> Any:
    """A chart that is drawn; for that it must be near the screen."""
    found = page.locator("figure", has=page.get_by_role("heading", name=title, exact=True)).first
    found.scroll_into_view_if_needed()
    expect(found.locator(".plot[data-drawn]")).to_be_visible()
    return found


def names(page: Any) -> list[str]:
    return page.locator("#rows th").all_text_contents()  # type: ignore[no-any-return]


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


def test_what_comes_while_it_trains_is_shown_and_nothing_jumps(look: Look) -> None:
    made = MadeUp(sizes=(8, 64), live=True)
    last = made.runs_.pop()
    with look.at(made) as page:
        expect(page.locator("#state")).to_have_text("training")
        curve = figure(page, "accuracy")
        asked = len(made.asked)
        made.touch()
        expect(curve.locator(".plot")).to_have_attribute("data-drawn", "2")
        assert made.asked[asked:] == ["study", "accuracy"]  # of the curves, those that are seen
        box = curve.locator(".plot").bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 500, box["y"] + 200, steps=4)
        page.mouse.up()
        expect(curve.get_by_role("button", name="Reset zoom")).to_be_visible()
        ticks = curve.locator(".xtick text").all_text_contents()
        assert len(ticks) > 2
        page.get_by_role("searchbox").fill("batch 64")
        page.get_by_label("Select batch 64, seed 0").check()
        page.get_by_role("searchbox").focus()
        page.keyboard.type(" ")
        made.runs_.append(last | {"status": "running"})
        made.touch()
        expect(page.locator("#rows tr")).to_have_count(3)
        expect(page.locator("#rows tr").last).to_contain_text("running")
        expect(page.get_by_role("searchbox")).to_be_focused()
        expect(page.get_by_role("searchbox")).to_have_value("batch 64 ")
        expect(page.get_by_label("Select batch 64, seed 0")).to_be_checked()
        curve.scroll_into_view_if_needed()
        expect(curve.locator(".plot")).to_have_attribute("data-drawn", "3")
        assert sorted(curve.locator(".xtick text").all_text_contents()) == sorted(ticks)
        curve.get_by_role("button", name="Reset zoom").click()
        expect(curve.get_by_role("button", name="Reset zoom")).to_be_hidden()


def test_a_study_without_runs_says_how_to_begin(look: Look) -> None:
    made = MadeUp(sizes=(), live=True)
    with look.at(made, pictures=False) as page:
        expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
        expect(page.get_by_text("rightbatch study train.py:workload")).to_be_visible()
        expect(page.locator("main")).to_be_hidden()
        begun = MadeUp(sizes=(8,), seeds=1)
        made.sizes, made.runs_ = begun.sizes, begun.runs_
        made.touch()
        expect(page.locator("#rows tr")).to_have_count(1)
        expect(page.get_by_role("heading", name="No run yet")).to_be_hidden()


def test_without_a_target_it_says_what_is_missing(look: Look) -> None:
    made = MadeUp(sizes=(8, 16), metrics=("loss",))
    reason = "No target was set: --target accuracy=0.9 asks when each size reaches it."
    nothing = {"seconds": None, "steps": None, "examples": None}
    made.changes |= {"target": None, "critical": None, "critical_reason": reason}
    made.changes |= {"answer": {"sentences": [], "first": nothing}, "gap_sentence": ""}
    with look.at(made) as page:
        expect(page.get_by_text(reason)).to_be_visible()
        expect(page.locator("#tiles")).to_be_hidden()
        expect(page.get_by_role("heading", name="Steps", exact=True)).to_be_hidden()
        expect(page.get_by_role("heading", name="Noise during training")).to_be_hidden()
        expect(page.get_by_role("button", name="To target")).to_have_count(0)
        figure(page, "loss")


def test_a_store_that_cannot_be_read_is_said_until_it_can(look: Look) -> None:
    made = MadeUp(sizes=(8, 64))
    made.error = OSError("unable to open the database")
    with look.at(made, pictures=False) as page:
        notice = page.locator("#notice")
        expect(notice).to_contain_text("The study cannot be read: OSError: unable to open")
        expect(notice).to_contain_text("Check that the folder exists")
        made.error = None
        expect(page.locator("#rows tr")).to_have_count(6)
        expect(notice).to_be_hidden()
        expect(page.locator("#curve")).to_contain_text("The data are in the table.")


def test_a_server_that_is_gone_is_said_and_comes_back(look: Look) -> None:
    made = MadeUp(sizes=(8, 64), live=True)
    with contextlib.ExitStack() as stack:
        with site(made) as url:
            page = stack.enter_context(look.at(url, pictures=False))
            expect(page.locator("#rows tr")).to_have_count(6)
        expect(page.locator("#notice")).to_contain_text("The server does not answer.")
        expect(page.locator("#notice")).to_contain_text("rightbatch ui")
        expect(page.locator("#rows tr")).to_have_count(6)  # what was known stays
        made.runs_.pop()
        with site(made, port=urlsplit(url).port or 0):
            expect(page.locator("#notice")).to_be_hidden()
            expect(page.locator("#rows tr")).to_have_count(5)


def test_the_token_is_taken_out_of_the_address_or_asked_for(look: Look) -> None:
    with site(MadeUp(sizes=(8,)), token="söcret&1") as url:
        with look.at(f"{url}/?token=s%C3%B6cret%261#along=epochs", pictures=False) as page:
            expect(page.locator("#rows tr")).to_have_count(3)
            assert page.url == f"{url}/#along=epochs"
            page.reload()  # it is kept for this tab
            expect(page.locator("#rows tr")).to_have_count(3)
            page.evaluate("sessionStorage.clear()")
        with look.at(url, pictures=False) as page:
            expect(page.get_by_text("This server requires a token")).to_be_visible()
            page.get_by_label("Token").fill("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#token-error")).to_have_text("Wrong token.")
            page.get_by_label("Token").fill("söcret&1")
            page.keyboard.press("Enter")
            expect(page.locator("#rows tr")).to_have_count(3)
            expect(page.get_by_text("This server requires a token")).to_be_hidden()


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


def test_many_runs_are_shown_a_hundred_at_first(look: Look) -> None:
    made = MadeUp(sizes=(8, 16, 32), seeds=50, places=10)
    with look.at(made, pictures=False) as page:
        expect(page.locator("#rows tr")).to_have_count(100)
        page.get_by_role("button", name="Show all 150 runs").click()
        expect(page.locator("#rows tr")).to_have_count(150)


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


def test_charts_follow_the_theme(look: Look) -> None:
    with look.at(MadeUp(sizes=(8, 16))) as page:
        curve = figure(page, "accuracy")
        line = curve.locator(".scatterlayer .js-line[style*='stroke-width: 2px']").first
        before = line.evaluate("line => line.style.stroke")
        page.emulate_media(color_scheme="dark")
        expect(curve.locator(".plot")).to_have_attribute("data-drawn", "2")
        assert line.evaluate("line => line.style.stroke") != before


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


def test_a_document_is_sent_again_only_once_it_has_changed() -> None:
    made = MadeUp(sizes=(8, 64))
    with site(made) as url:
        first = ask(url, "/api/study")
        assert first.status == 200 and len(first.content["runs"]) == 6
        tag = first.headers["ETag"]
        again = ask(url, "/api/study", If_None_Match=tag)
        assert (again.status, again.body) == (304, b"")
        curves = ask(url, "/api/curves?metric=loss")
        assert curves.content == made.curves("loss")
        assert made.asked.count("study") == 1
        made.touch()
        assert ask(url, "/api/study", If_None_Match=tag).status == 200
        assert ask(url, "/api/runs/run-8-1").content["seed"] == 1


def test_what_is_not_there_is_answered_with_why() -> None:
    made = MadeUp(sizes=(8,), seeds=1)
    with site(made) as url:
        for path, text in {
            "/api/curves?metric=los": "no run has logged 'los'",
            "/api/curves": "no run has logged ''",
            "/api/runs/a/b": "there is no run 'a/b'",
            "/nowhere": "there is nothing at this path",
            "/static/../app.py": "there is nothing at this path",
        }.items():
            answer = ask(url, path)
            assert (answer.status, answer.content) == (404, {"error": text})
        made.changes["gap_sentence"] = float("nan")
        assert ask(url, "/api/study").content["gap_sentence"] is None


def test_only_the_page_may_style_attributes_and_nothing_may_come_from_elsewhere() -> None:
    with site(MadeUp(sizes=(8,), seeds=1), token="secret") as url:
        page = ask(url, "/")
        policy = dict(part.split(" ", 1) for part in page.headers[POLICY].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["style-src-attr"] == "'unsafe-inline'"
        answer = ask(url, "/api/study")
        assert answer.status == 401
        assert "unsafe-inline" not in answer.headers[POLICY]
        addresses = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
        assert addresses and all(re.match(r"/(static|api)/|#", one) for one in addresses)
        script = next(one for one in addresses if "plotly-" in one)
        sent = ask(url, script)
        assert "immutable" in sent.headers["Cache-Control"]
        assert b"Plotly" in sent.body
        assert ask(url, "/", Host="evil.example").status == 200  # behind a token any name is good
    with site(MadeUp(sizes=(8,), seeds=1)) as url:
        assert ask(url, "/api/study", Host="evil.example").status == 400


POLICY = "Content-Security-Policy"
