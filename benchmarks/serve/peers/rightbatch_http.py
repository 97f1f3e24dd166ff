"""`rb.Batcher` behind Starlette and uvicorn; the target is all that it is told."""

from __future__ import annotations

import asyncio
import time

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.serve.peers.command_line import Asked, asked
from benchmarks.serve.peers.worker import Worker
from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher


def app(settings: Asked) -> Starlette:
    batcher = Batcher(Worker(settings.model), settings.target)

    async def predict(request: Request) -> JSONResponse:
        arrived = time.monotonic()
        try:
            return JSONResponse(await batcher(await request.body(), arrived=arrived))
        except LateError as error:
            return JSONResponse({"error": str(error)}, 503)

    return Starlette(routes=[Route("/predict", predict, methods=["POST"])])


if __name__ == "__main__":
    settings = asked()
    server = uvicorn.Server(
        uvicorn.Config(app(settings), port=settings.port, log_level="warning", access_log=False)
    )
    asyncio.run(server.serve())
