"""The page while a study trains, has no runs or no target, or cannot be read or asked."""

from __future__ import annotations

import contextlib
import socket

import pytest
from page_looks import Look, expect, figure
from study_sites import MadeUp, site

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("uvicorn")


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
        # Bound, not listening: the port is nobody else's while the server is gone.
        held = stack.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with site(made, port=port) as url:
            page = stack.enter_context(look.at(url, pictures=False))
            expect(page.locator("#rows tr")).to_have_count(6)
        expect(page.locator("#notice")).to_contain_text("The server does not answer.")
        expect(page.locator("#notice")).to_contain_text("rightbatch ui")
        expect(page.locator("#rows tr")).to_have_count(6)  # what was known stays
        made.runs_.pop()
        with site(made, port=port):
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
