"""Answer HTTP requests with an image by the result of a batcher.

Images are decoded outside the event loop, in at most 4 threads, and large ones in threads of their
own, so that they do not delay small ones and many requests do not exhaust the memory.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rightbatch._errors import LateError
from rightbatch._json import to_json
from rightbatch._serve.engine.records import REQUESTS
from rightbatch._serve.models.results import json_default
from rightbatch._serve.web.bodies import MemoryBudget, OverloadedError, read_image
from rightbatch._serve.web.images import BadImageError, Limits, bytes_to_decode, decode

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from rightbatch._serve.engine.batcher import Batcher

_MAX_DECODERS = 4  # threads; the model needs cores too
_MAX_LARGE = 2  # of large images at a time
_LARGE = 64_000_000  # bytes to decode an image, about 5 million pixels of a photo


class Predictor:
    """Answers requests that contain an image.

    Args:
        batcher: runs the model.
        limits: of requests.
    """

    def __init__(self, batcher: Batcher, limits: Limits) -> None:
        self._batcher = batcher
        self._limits = limits
        self._budget = MemoryBudget(limits.held_bytes)
        self._decoders = ThreadPoolExecutor(
            min(os.cpu_count() or 1, _MAX_DECODERS), thread_name_prefix="rightbatch-decode"
        )
        self._large_decoders = ThreadPoolExecutor(
            min(os.cpu_count() or 1, _MAX_LARGE), thread_name_prefix="rightbatch-decode-large"
        )

    async def respond(self, request: Request) -> Response:
        """Return the result or an error: 503 if it would be late, 4xx for invalid input."""
        from starlette.requests import ClientDisconnect

        arrived = time.monotonic()
        try:
            return answer(200, await self._predict(request, arrived))
        except BadImageError as error:
            return answer(error.status, {"error": str(error)})
        except LateError as error:
            refusal = {"error": str(error), "cause": error.cause}
            return answer(503, refusal, retry_after=error.retry_after)
        except OverloadedError:
            return answer(503, {"error": "too many images at once"}, retry_after=1)
        except ClientDisconnect:
            return answer(400, {"error": "the client has disconnected"})
        except asyncio.CancelledError:  # by the HTTP server, when its time to stop is over
            return answer(503, {"error": "the server has stopped"}, retry_after=1)
        except Exception as error:  # of the model
            return answer(500, {"error": f"the model failed: {type(error).__name__}: {error}"})

    def close(self) -> None:
        """Stop the decoder threads."""
        for decoders in (self._decoders, self._large_decoders):
            decoders.shutdown(wait=False, cancel_futures=True)

    async def _predict(self, request: Request, arrived: float) -> dict[str, Any]:
        with self._budget.reserve() as reservation:
            body = await read_image(request, self._limits, reservation)
            loop = asyncio.get_running_loop()
            needed = await loop.run_in_executor(self._decoders, bytes_to_decode, body, self._limits)
            reservation.set(len(body) + needed)  # before a small file becomes a large image
            decoders = self._decoders if needed <= _LARGE else self._large_decoders
            image = await loop.run_in_executor(decoders, decode, body, self._limits)
            del body
            reservation.set(image.nbytes)
            served = await self._batcher.served(image, stream=REQUESTS, arrived=arrived)
        return {
            "result": served.result,
            "batch_size": served.batch_size,
            "latency_ms": round(1000 * served.latency, 2),
            "reason": served.reason,
        }


def health_answer(content: dict[str, Any], seconds_without_success: float) -> Response:
    """Return the response of `/health`; `content` has the state of the server."""
    if seconds_without_success:
        text = f"items came, and none was served in time for {seconds_without_success:.0f} s"
        return answer(503, content | {"reason": text})
    return answer(200 if content["state"] in ("starting", "serving") else 503, content)


def answer(
    status: int,
    content: Any,
    *,
    headers: dict[str, str] | None = None,
    retry_after: float | None = None,
) -> Response:
    """Return a JSON response; `retry_after` is in seconds, rounded up to at least 1."""
    from starlette.responses import Response

    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(max(math.ceil(retry_after), 1))
    headers.setdefault("Cache-Control", "no-store")
    return Response(
        to_json(content, default=json_default), status, headers, media_type="application/json"
    )
