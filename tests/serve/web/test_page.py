"""The page in a real browser, as it is looked at, typed into and cut off."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from films import PATIENCE, reserved_port, wait_for
from sites import StandIn, encoded, picture, site, source, stand_in

from page_checks import HAS_NAME, LOW_CONTRASTS

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

expect = playwright.expect
NASTY = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def batch(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "at": 1_700_000_000.0 + number / 10,
        "size": 1 + number % 4,
        "ran_as": 4,
        "ms": 40.0,
        "slowest_ms": 80.0,
        "reason": "all waiting items",
        "waiting": 0,
    } | changes


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        expect.set_options(timeout=1000 * PATIENCE)
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
        expect.set_options(timeout=5_000)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(latency=0.5, sources=[source("line1"), source("line2")]) as server:
        server.pictures["line1"] = encoded(picture(90), "JPEG")
        yield server


@contextlib.contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """The page; what it complains of, and what it asks of other machines, fails the test."""
    wrong: list[str] = []
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | options)
    page = context.new_page()
    home = urlsplit(url).netloc

    def asked(request: Any) -> None:
        if not request.url.startswith("blob:") and urlsplit(request.url).netloc != home:
            wrong.append(f"asked {request.url}")

    def said(message: Any) -> None:
        # a browser notes every answer of 4xx and every connection that fails by itself
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    page.on("request", asked)
    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(1000 * PATIENCE)
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert wrong == []


def row(page: Any, name: str) -> Any:
    return page.locator(".row", has=page.get_by_role("heading", name=name, exact=True))


def test_it_says_what_is_served_and_how_it_goes(browser: Any, server: StandIn) -> None:
    server.sources[1] |= {"state": "waiting", "error": "nothing came for 3 s", "in_time": 900}
    with site(server) as url, opened(browser, url) as page:
        expect(page.get_by_role("heading", name="yolo26n")).to_be_visible()
        expect(page).to_have_title("yolo26n · rightbatch")
        expect(page.get_by_text("target 500 ms", exact=True)).to_be_visible()
        expect(page.locator("#rate")).to_have_text("19.6 /s")
        expect(page.locator("#in-time")).to_have_text("87.9 %")
        expect(page.locator("#dropped-note")).to_have_text("36 replaced, 4 late")
        expect(page.get_by_text("1 of 2 running")).to_be_visible()
        one = row(page, "line1")
        for text in ("running", "10.0 /s", "99.6 %", "41 ms p50 · 83 ms p99", "2 late"):
            expect(one.get_by_text(text, exact=True)).to_be_visible()
        expect(row(page, "line2").get_by_text("nothing came for 3 s")).to_be_visible()


def test_what_changes_is_shown_within_seconds_and_the_focus_stays(
    browser: Any, server: StandIn
) -> None:
    with site(server) as url, opened(browser, url) as page:
        button = page.get_by_role("button", name="Remove line2")
        button.focus()
        server.sources[0]["state"] = "failed"
        server.sources.insert(0, source("line0"))
        expect(row(page, "line1").get_by_text("failed", exact=True)).to_be_visible()
        names = page.locator(".row h3")
        expect(names).to_have_text(["line0", "line1", "line2"])
        expect(button).to_be_focused()


def test_what_this_machine_can_do_is_told_once_it_is_known(browser: Any, server: StandIn) -> None:
    with site(server) as url, opened(browser, url) as page:
        expect(page.get_by_text("Not measured yet: ")).to_be_visible()
        server.batcher.submit(picture()).result()
        measured = server.batcher.calibration
        assert measured is not None
        text = str(measured)
        expect(page.locator("#capacity")).to_have_text(f"{text[0].upper()}{text[1:]}.")
        expect(page.get_by_role("img", name="Measured: ")).to_be_visible()


def test_batches_are_drawn_and_read_with_the_keyboard(browser: Any, server: StandIn) -> None:
    late = "limited by the latency target of 500 ms"
    server.batches = [batch(n) for n in range(60)] + [batch(60, slowest_ms=700.0, reason=late)]
    with site(server) as url, opened(browser, url) as page:
        chart = page.get_by_role("slider", name="Batches")
        expect(chart.locator("rect.size")).to_have_count(61)
        expect(chart.locator(".late")).to_have_count(1)
        expect(page.locator("#batch")).to_contain_text("slowest result 700 ms")
        chart.focus()
        page.keyboard.press("ArrowLeft")
        expect(chart).to_have_attribute("aria-valuenow", "61")
        page.keyboard.press("ArrowLeft")
        expect(chart).to_have_attribute("aria-valuenow", "60")
        expect(chart).to_have_attribute("aria-valuetext", _contains("4 items", "80 ms"))
        server.batches.append(batch(61))
        expect(chart.locator("rect.size")).to_have_count(62)
        expect(chart).to_have_attribute("aria-valuenow", "60")  # the chosen one stays
        page.keyboard.press("Escape")
        expect(chart).to_have_attribute("aria-valuetext", _contains("Newest"))
        expect(page.locator("#reasons li").first).to_contain_text("All waiting items98 %")
        page.get_by_text("As a table").click()
        expect(page.locator("#batch-rows tr")).to_have_count(30)
        expect(page.locator("#batch-rows tr").nth(1)).to_contain_text(
            "Limited by the latency target of 500 ms"
        )


def test_a_narrow_screen_shows_as_many_batches_as_it_has_room_for(
    browser: Any, server: StandIn
) -> None:
    server.batches = [batch(n) for n in range(200)]
    narrow = {"width": 400, "height": 800}
    with site(server) as url, opened(browser, url, viewport=narrow) as page:
        bars = page.locator("#chart rect.size")
        expect(bars.first).to_be_attached()
        wait_for(lambda: 50 < bars.count() < 100)
        page.set_viewport_size({"width": 1400, "height": 800})
        expect(bars).to_have_count(200)


def test_newest_frames_are_shown_and_looked_at_closely(browser: Any, server: StandIn) -> None:
    with site(server) as url, opened(browser, url) as page:
        image = row(page, "line1").locator("img")
        expect(image).to_be_visible()
        assert image.evaluate("image => image.naturalHeight") == 90
        expect(row(page, "line2").get_by_text("no frame yet")).to_be_visible()
        page.get_by_role("button", name="View line1").click()
        closer = page.get_by_role("dialog", name="line1")
        expect(closer.get_by_role("img", name="The newest frame of line1")).to_be_visible()
        expect(closer.get_by_text("1280 × 720")).to_be_visible()
        page.keyboard.press("Escape")
        expect(closer).to_be_hidden()
        expect(page.get_by_role("button", name="View line1")).to_be_focused()
        page.get_by_role("button", name="View line2").click()
        expect(page.get_by_text("source 'line2' has no frame yet")).to_be_visible()


def test_pictures_are_let_go_when_newer_ones_come(browser: Any, server: StandIn) -> None:
    count = (
        "const make = URL.createObjectURL, drop = URL.revokeObjectURL; window.held = 0;"
        "URL.createObjectURL = blob => (window.held++, make.call(URL, blob));"
        "URL.revokeObjectURL = url => (window.held--, drop.call(URL, url))"
    )
    with site(server) as url, opened(browser, url) as page:
        page.add_init_script(count)
        page.reload()
        for _ in range(3):
            before = row(page, "line1").locator("img").get_attribute("src")
            server.sources[0]["frames"] += 1
            expect(row(page, "line1").locator("img")).not_to_have_attribute("src", before or "")
        server.remove("line1")
        expect(row(page, "line1")).to_have_count(0)
        page.wait_for_function("window.held === 0")


def test_a_source_is_added_with_the_keyboard(browser: Any, server: StandIn) -> None:
    with site(server) as url, opened(browser, url) as page:
        page.get_by_role("button", name="Add a source").press("Enter")
        page.keyboard.type(" rtsp://belt/3 ")
        page.keyboard.press("Tab")
        page.keyboard.type("belt")
        page.get_by_label("When overloaded").select_option("lose no frame")
        page.get_by_label("Weight").fill("0.5")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="Add a source")).to_be_hidden()
        expect(row(page, "belt")).to_be_visible()
        expect(page.get_by_text("Added belt")).to_be_attached()
    assert server.calls == [("add", "rtsp://belt/3", "belt", "every", 0.5)]


def test_a_source_that_cannot_be_added_says_why_and_keeps_what_was_typed(
    browser: Any, server: StandIn
) -> None:
    with site(server) as url, opened(browser, url) as page:
        page.get_by_role("button", name="Add a source").click()
        page.get_by_label("Source", exact=True).fill("rtsp://belt/3")
        page.get_by_label("Name").fill("line1")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("there is a source 'line1' already")
        expect(page.get_by_label("Source", exact=True)).to_have_value("rtsp://belt/3")
        page.get_by_label("Name").fill("line3")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(row(page, "line3")).to_be_visible()


def test_a_source_is_removed_once_that_is_confirmed(browser: Any, server: StandIn) -> None:
    server.add_from_page(0, name="hall/2 ä?#%")
    with site(server) as url, opened(browser, url) as page:
        page.get_by_role("button", name="Remove hall/2").click()
        page.get_by_role("button", name="Cancel").click()
        expect(row(page, "hall/2 ä?#%")).to_be_visible()
        page.get_by_role("button", name="Remove hall/2").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(row(page, "hall/2 ä?#%")).to_have_count(0)
    assert server.calls[-1] == ("remove", "hall/2 ä?#%")


def test_names_errors_and_reasons_are_text_and_nothing_else(browser: Any, server: StandIn) -> None:
    server.name = NASTY
    server.sources = [
        source(NASTY, error=NASTY, url=NASTY, contract=NASTY, state=NASTY, dropped={NASTY: 3})
    ]
    server.batches = [batch(n, reason=NASTY) for n in range(3)]
    with site(server) as url, opened(browser, url) as page:
        expect(page.locator(".row h3")).to_have_text(NASTY)
        page.get_by_text("As a table").click()
        expect(page.locator("#batch-rows tr")).to_have_count(3)
        page.locator("button.thumb").click()
        expect(page.locator("#view-facts")).to_contain_text(NASTY)
        page.keyboard.press("Escape")
        page.locator("button.remove").click()
        expect(page.locator("#remove-name")).to_have_text(NASTY)
        assert page.locator("main img[src='x'], dialog img[src='x'], main script").count() == 0
        assert page.title() == f"{NASTY} · rightbatch"


@pytest.mark.parametrize("predict", [True, False])
def test_without_sources_it_says_how_to_begin(browser: Any, predict: bool) -> None:
    with stand_in() as server, site(server, predict=predict) as url, opened(browser, url) as page:
        expect(page.get_by_text("No sources yet.")).to_be_visible()
        expect(page.get_by_text("No batch has run yet.")).to_be_visible()
        expect(page.locator("#curl")).to_have_text(f"curl --data-binary @image.jpg {url}/predict")
        expect(page.locator("#curl")).to_be_visible(visible=predict)


def test_requests_have_a_row_of_their_own(browser: Any) -> None:
    with stand_in() as server, site(server) as url, opened(browser, url) as page:
        server.batcher.submit(picture(), stream="http").result()
        expect(row(page, "Requests")).to_be_visible()
        expect(page.get_by_role("button", name="Remove Requests")).to_have_count(0)
        expect(page.get_by_text("No sources yet.")).to_be_hidden()


def test_a_lost_connection_is_said_and_comes_back(browser: Any, server: StandIn) -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(reserved_port())
        with site(server, port=port) as url:
            page = stack.enter_context(opened(browser, url))
            expect(row(page, "line1")).to_be_visible()
        expect(page.get_by_role("status").first).to_contain_text("The server does not answer.")
        expect(page.get_by_text("no connection")).to_be_visible()
        expect(row(page, "line1")).to_be_visible()  # what was known stays
        with site(server, port=port):
            expect(page.get_by_text("The server does not answer.")).to_be_hidden()
            expect(page.locator("#state")).to_have_text("serving")


def test_a_server_that_stops_says_so(browser: Any, server: StandIn) -> None:
    with site(server) as url, opened(browser, url) as page:
        server.state = "stopping"
        expect(page.get_by_text("it finishes the frames that it has accepted")).to_be_visible()


def test_the_token_of_the_address_is_used_and_taken_out_of_it(
    browser: Any, server: StandIn
) -> None:
    with (
        site(server, token="söcret&1") as url,
        opened(browser, f"{url}/?token=s%C3%B6cret%261") as page,
    ):
        expect(row(page, "line1").locator("img")).to_be_visible()
        assert page.url == f"{url}/"
        page.reload()  # it is kept for this tab
        expect(row(page, "line1")).to_be_visible()


def test_without_the_token_it_is_asked_for(browser: Any, server: StandIn) -> None:
    with site(server, token="secret") as url, opened(browser, url) as page:
        expect(page.get_by_text("This server requires a token")).to_be_visible()
        expect(page.locator("main")).to_be_hidden()
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_have_text("Wrong token.")
        page.get_by_label("Token").fill("secret")
        page.keyboard.press("Enter")
        expect(row(page, "line1")).to_be_visible()
        expect(page.get_by_text("This server requires a token")).to_be_hidden()


@pytest.mark.parametrize("width", [320, 400, 700, 1000, 1400])
def test_nothing_is_wider_than_the_screen(browser: Any, server: StandIn, width: int) -> None:
    long = "a-camera-with-a-very-long-name-" * 4
    server.sources.append(source(long, error="x" * 300, dropped={"late": 10**9, "replaced": 10**9}))
    server.batches = [batch(n) for n in range(200)]
    with (
        site(server) as url,
        opened(browser, url, viewport={"width": width, "height": 800}) as page,
    ):
        expect(row(page, long)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_text_stands_out_from_its_ground(
    browser: Any, server: StandIn, scheme: str, width: int
) -> None:
    """WCAG 2's contrast of 4.5 for all text that is shown."""
    server.sources[0] |= {"state": "failed", "error": "gone"}
    server.sources[1] |= {"state": "waiting"}
    server.batches = [batch(n) for n in range(20)]
    viewport = {"width": width, "height": 900}
    with (
        site(server) as url,
        opened(browser, url, viewport=viewport, color_scheme=scheme) as page,
    ):
        expect(row(page, "line1").get_by_text("gone")).to_be_visible()
        assert page.evaluate(LOW_CONTRASTS) == []


def test_everything_that_can_be_used_has_a_name(browser: Any, server: StandIn) -> None:
    with site(server) as url, opened(browser, url) as page:
        expect(row(page, "line2")).to_be_visible()
        page.get_by_role("button", name="Add a source").click()
        for control in page.locator("button, input, select, [role=slider]").all():
            assert control.evaluate(HAS_NAME), control.evaluate("element => element.outerHTML")
        assert page.locator("html").get_attribute("lang") == "en"


def test_a_page_that_nobody_sees_asks_for_no_pictures(browser: Any, server: StandIn) -> None:
    asked = []
    with site(server) as url, opened(browser, url) as page:
        expect(row(page, "line1").locator("img")).to_be_visible()
        page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
        page.wait_for_timeout(500)
        page.on("request", lambda request: asked.append(request.url))
        server.sources[0]["frames"] += 1
        page.wait_for_timeout(3000)
    assert not [url for url in asked if "snapshot" in url]


def test_the_real_server_is_shown(browser: Any) -> None:
    from rightbatch._serve.server import Server

    def frames() -> Iterator[Any]:
        while True:
            time.sleep(0.02)
            yield picture(60)

    def model(images: list[Any]) -> list[int]:
        time.sleep(0.005)
        return [len(image) for image in images]

    with Server(model, "200ms", to=lambda line: None, progress=False) as server:
        server.add(frames(), name="belt")
        url = server.listen(0)
        with opened(browser, url) as page:
            expect(row(page, "belt").get_by_text("running", exact=True)).to_be_visible()
            expect(row(page, "belt").locator("img")).to_be_visible()
            expect(page.locator("#chart rect.size").first).to_be_attached()
            expect(page.get_by_text("frames/s fit")).to_be_visible()
            page.get_by_role("button", name="Remove belt").click()
            page.get_by_role("dialog").get_by_role("button", name="Remove").click()
            expect(page.get_by_text("No sources yet.")).to_be_visible()


def _contains(*parts: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in parts))
