"""A browser's look at the page of a study, and what a test asks of a page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from study_sites import MadeUp

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
