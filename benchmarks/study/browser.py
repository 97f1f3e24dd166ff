"""Chromium, and a script in the page that notes when something is to be seen.

Times are the page's own, in milliseconds since the navigation began. What has changed counts as
seen in the frame that follows: the next animation frame, once its work is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VIEW = {"width": 1400, "height": 900}
PATIENCE = 60_000.0  # milliseconds

# `seen` has when the answer and the main chart were first seen; `drawn` each drawing of a chart;
# `switched` each click on an axis with when the main chart was seen along it; `asked` the click
# that is not answered yet.
WATCHING = """
(() => {
  const noted = (window.benchmark = { seen: {}, drawn: [], switched: [], asked: null })
  const painted = told => requestAnimationFrame(() => setTimeout(() => told(performance.now())))
  const answer = new MutationObserver(() => {
    const first = document.querySelector('#sentences li')
    if (!first || first.closest('[hidden]')) return
    answer.disconnect()
    painted(at => (noted.seen.answer = at))
  })
  answer.observe(document, { subtree: true, childList: true, attributes: true })
  new MutationObserver(changes => {
    for (const { target } of changes) {
      const chart = target.closest('figure').id
      const ends = (target.data ?? [])
        .filter(trace => trace.name)
        .map(trace => [trace.name, trace.x.at(-1)])
      painted(at => {
        noted.drawn.push({ chart, at, wall: performance.timeOrigin + at, ends })
        if (chart !== 'curve') return
        noted.seen.curves ??= at
        if (!noted.asked) return
        noted.switched.push({ ...noted.asked, seen: at })
        noted.asked = null
      })
    }
  }).observe(document, { subtree: true, attributes: true, attributeFilter: ['data-drawn'] })
  const clicked = event => {
    const axis = event.target.closest?.('#along label')?.textContent.trim()
    if (axis && event.isTrusted) noted.asked ??= { axis, clicked: event.timeStamp }
  }
  addEventListener('click', clicked, true)
})()
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A fresh browser, which has nothing in its caches."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise RuntimeError("there is no chromium; Debian's package of that name brings it")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Any, **options: Any) -> Any:
    """A tab of its own, with caches of its own, in which `WATCHING` notes."""
    context = browser.new_context(viewport=VIEW, **options)
    context.add_init_script(WATCHING)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    return page


def noted(page: Any) -> dict[str, Any]:
    """What was noted so far."""
    found: dict[str, Any] = page.evaluate("() => window.benchmark")
    return found


def wait_for_curves(page: Any) -> None:
    """Until the main chart is drawn, and seen."""
    page.locator("#curve .plot[data-drawn]").wait_for()
    until = time.monotonic() + PATIENCE / 1000
    while noted(page)["seen"].get("curves") is None:
        if time.monotonic() > until:
            raise TimeoutError("the main chart was not seen")
        page.wait_for_timeout(20)


def settle(page: Any, quiet: float = 0.4) -> None:
    """Until no chart was drawn for so many seconds."""
    count = -1
    while (now := len(noted(page)["drawn"])) != count:
        count = now
        page.wait_for_timeout(1000 * quiet)
