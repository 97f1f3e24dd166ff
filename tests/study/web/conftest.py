"""One browser for the tests of a module that look at the page of a study."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_looks import CHROMIUM, Behind, Look
from study_sites import MadeUp, site


@pytest.fixture(scope="module")
def look() -> Iterator[Look]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    server: dict[str, MadeUp] = {}
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as started, site(Behind(server)) as url:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        yield Look(page, url, server)
        browser.close()
    playwright.expect.set_options(timeout=5_000)
