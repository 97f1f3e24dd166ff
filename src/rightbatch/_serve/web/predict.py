"""One image over HTTP: from a request to the response, with whatever batcher there is.

Decoding is done off the event loop, in as many threads as there are cores, so that large images do
not hold up small ones and a crowd of them does not take the machine's memory at once.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rightbatch._errors import LateError
from rightbatch._serve.engine.records import REQUESTS
from rightbatch._serve.models.results import json_default
from rightbatch._serve.web.bodies import MemoryBudget, OverloadedError, read_image
from rightbatch._serve.web.images import BadImageError, Limits, decode

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from rightbatch._serve.engine.batcher import Batcher

_DECODERS = 4  # at most: the model wants the cores too


class Predictor:
    """Answers requests that bear an image.

    Args:
        batcher: what is asked.
        limits: what a request may cost.
    """

    def __init__(self, batcher: Batcher, limits: Limits) -> None:
        self._batcher = batcher
        self._limits = limits
        self._held = MemoryBudget(limits.held_bytes)
        self._decoders = ThreadPoolExecutor(
            min(os.cpu_count() or 1, _DECODERS), thread_name_prefix="rightbatch-decode"
        )

    async def respond(self, request: Request) -> Response:
        """The result, or why there is none: 503 where it would be late, 4xx for bad input."""
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
            return answer(503, {"error": "too many images are here at once"}, retry_after=1)
        except ClientDisconnect:
            return answer(400, {"error": "the sender has gone"})  # which nobody reads
        except Exception as error:  # the model's; it goes on with the next one
            return answer(500, {"error": f"the model failed: {type(error).__name__}: {error}"})

    def close(self) -> None:
        """Give the decoders' threads back."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _predict(self, request: Request, arrived: float) -> dict[str, Any]:
        with self._held.share() as share:
            body = await read_image(request, self._limits, share)
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self._decoders, decode, body, self._limits)
            del body
            share.set(image.nbytes)
            served = await self._batcher.served(image, stream=REQUESTS, arrived=arrived)
        return {
            "result": served.result,
            "batch_size": served.batch_size,
            "latency_ms": round(1000 * served.latency, 2),
            "reason": served.reason,
        }


def answer(
    status: int,
    content: Any,
    *,
    headers: dict[str, str] | None = None,
    retry_after: float | None = None,
) -> Response:
    """JSON; `retry_after` are seconds, said in whole ones of at least 1."""
    from starlette.responses import Response

    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(max(math.ceil(retry_after), 1))
    headers.setdefault("Cache-Control", "no-store")
    return Response(to_json(content), status, headers, media_type="application/json")


def to_json(content: Any) -> str:
    """JSON of anything that a model returns; what is no number there is null.

    Raises:
        TypeError: if it holds something that JSON has no word for.
    """
    try:
        return json.dumps(content, default=json_default, allow_nan=False)
    except ValueError:
        text = json.dumps(content, default=json_default)
        return json.dumps(json.loads(text, parse_constant=lambda name: None))
