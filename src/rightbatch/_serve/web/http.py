"""The HTTP routes of `serve`.

| path | response |
|---|---|
| `GET /` | the page |
| `GET /status` | all that the page shows, as JSON |
| `GET /snapshot/NAME` | a source's newest frame, as a JPEG |
| `POST /predict` | the result of an image (the body, or the form field `file`) |
| `GET /health` | 200 while serving; 503 while stopping, and while items come and none is in time |
| `GET /metrics` | metrics for Prometheus |
| `POST /sources` | adds an allowed source: `{"source": ..., "name"?, "contract"?, "weight"?}` |
| `DELETE /sources/NAME` | removes a source |

Errors are answered with `{"error": ...}`.
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
from rightbatch._serve.web.predict import Predictor, answer, health_answer
from rightbatch._web.access import AccessControl
from rightbatch._web.files import media_type, read_files
from rightbatch._web.listening import HttpServer

try:
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
except ImportError:
    raise MissingExtraError("FastAPI", "serve") from None

__all__ = ["HttpServer", "Limits", "ServerInterface", "make_app"]

_STATIC = Path(__file__).with_name("static")
_SOURCE_BYTES = 10_000  # largest body of `POST /sources`
_FIELDS: dict[str, tuple[type, ...]] = {
    "source": (str, int),
    "name": (str,),
    "contract": (str,),
    "weight": (int, float),
}
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
    """The part of `Server` that the routes use."""

    @property
    def batcher(self) -> Batcher: ...

    def add_from_page(
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
    """Return the application, for `HttpServer` or any other ASGI server.

    Args:
        server: the server behind the routes.
        token: that requests must send; the page is then opened with `/?token=...`.
        predict: whether `/predict` accepts images.
        hosts: accepted values of the Host header; see `AccessControl`.
        limits: of requests.
    """
    limits = limits or Limits()
    # Without FastAPI's documentation pages, which load scripts from other hosts.
    app = FastAPI(title="rightbatch", docs_url=None, redoc_url=None)
    app.add_middleware(AccessControl, token=token, hosts=hosts)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    _add_page(app)
    _add_status(app, server, predict)
    _add_sources(app, server, limits)
    if predict:
        predictor = app.state.predictor = Predictor(server.batcher, limits)

        @app.post("/predict", openapi_extra=_IMAGE)
        async def respond(request: Request) -> Response:
            """Return the result of an image, or 503 with `Retry-After` if it would be late."""
            return await predictor.respond(request)

    return app


def _add_page(app: FastAPI) -> None:
    files = read_files(_STATIC)

    def give(name: str) -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(files[name], media_type=media_type(name), headers=headers)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return give("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return give(name)


def _add_status(app: FastAPI, server: ServerInterface, predict: bool) -> None:
    metrics = Metrics(server)

    @app.get("/status")
    def status() -> Response:
        """Return the state of the server."""
        return answer(200, server.status())

    @app.get("/health")
    def health() -> Response:
        """Return the model's name and the state; 503 while stopping or never in time."""
        now = server.status()
        content = {"model": now["model"], "state": now["state"], "predict": predict}
        return health_answer(content, server.batcher.attainment.seconds_without_success)

    @app.get("/metrics")
    def prometheus(request: Request) -> Response:
        """Return metrics for Prometheus."""
        text, kind = metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": kind})


def _add_sources(app: FastAPI, server: ServerInterface, limits: Limits) -> None:
    budget = MemoryBudget(limits.held_bytes)

    @app.get("/snapshot/{name:path}")
    def snapshot(name: str) -> Response:
        """Return a source's newest frame as a JPEG."""
        try:
            image = server.snapshot(name)
        except UsageError as error:
            return answer(404, {"error": str(error)})
        if image is None:
            return answer(404, {"error": f"source {name!r} has no frame yet"})
        return Response(image, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.post("/sources", openapi_extra=_SOURCE, status_code=201)
    async def add(request: Request) -> Response:
        """Add a source; return its name."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of another site cannot send it
            return answer(415, {"error": "send JSON, with Content-Type: application/json"})
        try:
            with budget.reserve() as reservation:
                fields = _source_fields(
                    await read_body(request, limits, reservation, _SOURCE_BYTES)
                )
            source = fields.pop("source")
            name = await asyncio.to_thread(server.add_from_page, source, **fields)
        except BadImageError as error:
            return answer(error.status, {"error": str(error)})
        except (OverloadedError, ClientDisconnect):
            return answer(503, {"error": "the server is overloaded"}, retry_after=1)
        except UsageError as error:
            return answer(422, {"error": str(error)})
        return answer(201, {"name": name})

    @app.delete("/sources/{name:path}", status_code=204)
    def remove(name: str) -> Response:
        """Remove a source; its waiting frames are dropped."""
        try:
            server.remove(name)
        except UsageError as error:
            return answer(404, {"error": str(error)})
        return Response(status_code=204)


def _source_fields(body: bytes) -> dict[str, Any]:
    """Parse the body of `POST /sources` to the arguments of `server.add`.

    Raises:
        UsageError: if it is invalid.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise UsageError(f"the body must be an object with {', '.join(_FIELDS)}")
    for key in fields:
        if key not in _FIELDS:
            raise UsageError(f"unknown field {key!r}; the fields are {', '.join(_FIELDS)}")
    fields = {key: value for key, value in fields.items() if value is not None}
    for key, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, _FIELDS[key]):
            raise UsageError(f"invalid {key}: {json.dumps(value)}")
    if fields.get("source", "") == "":
        raise UsageError("source is missing: a URL, a file, a folder or a webcam's number")
    return fields


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {
        404: "no such path",
        405: f"method {request.method} is not allowed for this path",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return answer(error.status_code, {"error": text}, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    return answer(500, {"error": f"{type(error).__name__}: {error}"})
