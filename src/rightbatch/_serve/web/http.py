"""HTTP: the page, images, figures, and sources that come and go.

| path | what |
|---|---|
| `GET /` | the page |
| `GET /status` | all that the page shows |
| `GET /snapshot/NAME` | a source's newest frame, as a JPEG |
| `POST /predict` | an image (the body, or the field `file` of a form) for its result |
| `GET /health` | whether it serves: 200, or 503 once it stops |
| `GET /metrics` | for Prometheus |
| `POST /sources` | `{"source": ..., "name"?, "contract"?, "weight"?}` adds one |
| `DELETE /sources/NAME` | removes one |

Whatever is refused is answered with `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.web.bodies import MemoryBudget, OverloadedError, read_body
from rightbatch._serve.web.images import BadImageError, Limits
from rightbatch._serve.web.metrics import Metrics
from rightbatch._serve.web.predict import Predictor, answer
from rightbatch._web.access import AccessControl
from rightbatch._web.listening import HttpServer

try:
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
except ImportError:
    raise MissingExtraError("FastAPI", "serve") from None

__all__ = ["HttpServer", "Limits", "ServerInterface", "make_app"]

_PAGE = Path(__file__).with_name("static")
# Not guessed: what Windows takes .js for depends on what was installed there.
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_ORDER_BYTES = 10_000  # of a source that is added
_FIELDS: dict[str, tuple[type, ...]] = {
    "source": (str, int),
    "name": (str,),
    "contract": (str,),
    "weight": (int, float),
}
_ANSWERING = ("starting", "serving")
_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_IMAGE = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}
            },
        },
    }
}
_SOURCE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["source"],
                    "properties": {
                        "source": {"type": ["string", "integer"]},
                        "name": {"type": "string"},
                        "contract": {"enum": ["every", "freshest", "deadline"]},
                        "weight": {"type": "number"},
                    },
                }
            }
        },
    }
}


class ServerInterface(Protocol):
    """What is behind the routes: `run.Server`."""

    @property
    def batcher(self) -> Batcher: ...

    def add(
        self,
        source: Any,
        *,
        name: str | None = None,
        contract: Any = None,
        weight: float | None = None,
    ) -> str: ...

    def remove(self, name: str) -> Any: ...

    def status(self) -> dict[str, Any]: ...

    def snapshot(self, name: str) -> bytes | None: ...


def make_app(
    server: ServerInterface,
    *,
    token: str | None = None,
    predict: bool = True,
    hosts: Collection[str] | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The application, for `HttpServer` or any other ASGI server.

    Args:
        server: what is served.
        token: that requests bear; the page is opened with `/?token=...` then.
        predict: whether it takes images.
        hosts: the names by which it is asked for; see `AccessControl`.
        limits: what requests may cost.
    """
    limits = limits or Limits()
    # Without FastAPI's pages of documentation, which load scripts from other machines.
    app = FastAPI(title="rightbatch", docs_url=None, redoc_url=None)
    app.add_middleware(AccessControl, token=token, hosts=hosts)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    _add_page(app)
    _add_figures(app, server, predict)
    _add_sources(app, server, limits)
    if predict:
        predictor = app.state.predictor = Predictor(server.batcher, limits)

        @app.post("/predict", openapi_extra=_IMAGE)
        async def respond(request: Request) -> Response:
            """The result of an image, or 503 and `Retry-After` where it would be late."""
            return await predictor.respond(request)

    return app


def _add_page(app: FastAPI) -> None:
    files = {file.name: file.read_bytes() for file in _PAGE.iterdir() if file.suffix in _KINDS}

    def give(name: str) -> Response:
        kind = _KINDS[Path(name).suffix]
        return Response(files[name], media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return give("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return give(name)


def _add_figures(app: FastAPI, server: ServerInterface, predict: bool) -> None:
    metrics = Metrics(server)

    @app.get("/status")
    def status() -> Response:
        """What is served and how it goes."""
        return answer(200, server.status())

    @app.get("/health")
    def health() -> Response:
        """The model's name and the state; 503 once it stops."""
        now = server.status()
        said = {"model": now["model"], "state": now["state"], "predict": predict}
        return answer(200 if now["state"] in _ANSWERING else 503, said)

    @app.get("/metrics")
    def figures(request: Request) -> Response:
        """For Prometheus."""
        text, kind = metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": kind})


def _add_sources(app: FastAPI, server: ServerInterface, limits: Limits) -> None:
    held = MemoryBudget(limits.held_bytes)

    @app.get("/snapshot/{name:path}")
    def snapshot(name: str) -> Response:
        """A source's newest frame, as a JPEG."""
        try:
            image = server.snapshot(name)
        except UsageError as error:
            return answer(404, {"error": str(error)})
        if image is None:
            return answer(404, {"error": f"no frame has come from {name!r} yet"})
        return Response(image, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.post("/sources", openapi_extra=_SOURCE, status_code=201)
    async def add(request: Request) -> Response:
        """Add a source; its name comes back."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a foreign page's form cannot send
            return answer(415, {"error": "send JSON, with Content-Type: application/json"})
        try:
            with held.share() as share:
                order = _order(await read_body(request, limits, share, _ORDER_BYTES))
            source = order.pop("source")
            name = await asyncio.to_thread(server.add, source, **order)
        except BadImageError as error:
            return answer(error.status, {"error": str(error)})
        except (OverloadedError, ClientDisconnect):
            return answer(503, {"error": "there is no room"}, retry_after=1)
        except UsageError as error:
            return answer(422, {"error": str(error)})
        return answer(201, {"name": name})

    @app.delete("/sources/{name:path}", status_code=204)
    def remove(name: str) -> Response:
        """Remove a source; what waits of it is dropped."""
        try:
            server.remove(name)
        except UsageError as error:
            return answer(404, {"error": str(error)})
        return Response(status_code=204)


def _order(body: bytes) -> dict[str, Any]:
    """What `server.add` is called with.

    Raises:
        UsageError: if it is none.
    """
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the body is no JSON") from None
    if not isinstance(order, dict):
        raise UsageError(f"the body is an object with {', '.join(_FIELDS)}")
    for key in order:
        if key not in _FIELDS:
            raise UsageError(f"{key!r} is no field; the known ones: {', '.join(_FIELDS)}")
    order = {key: value for key, value in order.items() if value is not None}
    for key, value in order.items():
        if isinstance(value, bool) or not isinstance(value, _FIELDS[key]):
            raise UsageError(f"{key} cannot be {json.dumps(value)}")
    if order.get("source", "") == "":
        raise UsageError("source is missing: a URL, a file, a folder or a webcam's number")
    return order


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {
        404: "there is nothing at this path",
        405: f"{request.method} is not for this path",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return answer(error.status_code, {"error": text}, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    return answer(500, {"error": f"{type(error).__name__}: {error}"})
