"""The routes of the page: its HTML, its files, and the JSON documents that it draws.

| path | what |
|---|---|
| `GET /` | the page |
| `GET /api/study` | the runs, the figures by batch size, the answer |
| `GET /api/curves?metric=NAME` | a metric along the training, by batch size |
| `GET /api/runs/ID` | one run with all its curves |
| `GET /health` | `{"state": "serving"}` |

Documents have an `ETag`; if `If-None-Match` has it, an unchanged one is answered with 304. Errors
are answered with `{"error": ...}`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._study.web import template
from rightbatch._study.web.documents import CachedDocuments, Documents, LiveRuns, StudyDocuments
from rightbatch._web.access import AccessControl, App, Message, Receive, Scope, Send
from rightbatch._web.files import media_type

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError:
    raise MissingExtraError("Starlette", "study") from None

if TYPE_CHECKING:
    Endpoint = Callable[[Request], Awaitable[Response]]

__all__ = ["app", "app_of"]

_YEAR = "public, max-age=31536000, immutable"
# Plotly sets style attributes; its rules are in our own style sheet, see index.html.
_STYLES = b"; style-src-attr 'unsafe-inline'"


def app(source: LiveRuns, *, token: str | None = None, hosts: Collection[str] | None = None) -> App:
    """The application for a store of runs, for `HttpServer` or any other ASGI server.

    Args:
        source: the store.
        token: required from every request; the page is then opened with `/?token=...`.
        hosts: the host names that requests may use; see `AccessControl`.
    """
    return app_of(StudyDocuments(source), token=token, hosts=hosts)


def app_of(
    documents: Documents, *, token: str | None = None, hosts: Collection[str] | None = None
) -> App:
    """The application for any documents."""
    routes = [*_page(), *_documents(CachedDocuments(documents))]
    handlers = {HTTPException: _http_error}
    return _AllowPlotlyStyles(
        AccessControl(
            Starlette(routes=routes, exception_handlers=handlers), token=token, hosts=hosts
        )
    )


def _page() -> list[Route]:
    files = template.files()
    plotly = template.plotly_name()
    modules = sorted(name for name in files if name.endswith(".js"))
    html = template.html(plotly=plotly, marks=template.plotly_marks(), modules=modules)
    script = template.plotly_script()

    async def page(request: Request) -> Response:
        return Response(html, media_type="text/html", headers={"Cache-Control": "no-cache"})

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name == plotly:
            return Response(script, media_type="text/javascript", headers={"Cache-Control": _YEAR})
        if name not in files:
            raise HTTPException(404)
        headers = {"Cache-Control": "no-cache"}
        return Response(files[name], media_type=media_type(name), headers=headers)

    async def health(request: Request) -> Response:
        return _answer(200, b'{"state":"serving"}')

    return [Route("/", page), Route("/static/{name}", static), Route("/health", health)]


def _documents(cached: CachedDocuments) -> list[Route]:
    started = secrets.token_hex(4)  # a revision is of this process's documents only

    def route(path: str, body: Callable[[Request], bytes]) -> Route:
        def respond(request: Request) -> Response:
            try:
                # Before the body: a change in between is seen by the next request.
                revision = f"{started} {cached.revision()}"
                tag = f'"{hashlib.sha256(revision.encode()).hexdigest()[:20]}"'
                if request.headers.get("if-none-match") == tag:
                    return _answer(304, b"", tag)
                return _answer(200, body(request), tag)
            except UsageError as error:
                return _error(404, str(error))
            except Exception as error:  # of the store; the page shows it, and asks again
                return _error(500, f"{type(error).__name__}: {error}")

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(respond, request)

        return Route(path, endpoint)

    return [
        route("/api/study", lambda request: cached.study()),
        route("/api/curves", lambda request: cached.curves(request.query_params.get("metric", ""))),
        route("/api/runs/{id:path}", lambda request: cached.run(request.path_params["id"])),
    ]


def _answer(status: int, body: bytes, tag: str | None = None) -> Response:
    headers = {"Cache-Control": "no-cache"} | ({} if tag is None else {"ETag": tag})
    return Response(body, status, headers, media_type="application/json")


def _error(status: int, text: str) -> Response:
    return _answer(status, json.dumps({"error": text}).encode())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is nothing at this path", 405: f"{request.method} is not allowed here"}
    return _error(error.status_code, texts.get(error.status_code, str(error.detail)))


class _AllowPlotlyStyles:
    """Adds what Plotly needs to the content security policy of the page, and of nothing else."""

    def __init__(self, inner: App) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_styled(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, value + _STYLES if name == b"content-security-policy" else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        is_page = scope["type"] == "http" and scope["path"] == "/"
        await self._inner(scope, receive, send_styled if is_page else send)
