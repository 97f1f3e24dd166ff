"""Ray Serve: the same engine in every replica, on as many machines as Ray has.

    from ray import serve
    from rightbatch.integrations.ray import deployment

    handle = serve.run(deployment("yolo26n.onnx", latency="100ms", num_replicas=4))
    result = handle.remote(image).result()          # H×W×3 uint8 RGB

Over HTTP it answers as `rightbatch serve --http` does: an image is posted to `/predict`; `/health`
says how it goes; what would be late is refused with 503 and `Retry-After`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import REQUESTS
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Image
from rightbatch._serve.web.images import Limits
from rightbatch._serve.web.predict import Predictor, answer
from rightbatch._units import parse_seconds

_AT_ONCE = 1000  # requests that a replica is given: it refuses what would be late, not Ray's router
_CLOSING = 10.0  # seconds for what was accepted when a replica ends
_NAME = "rightbatch"  # of the application and of its deployment


def deployment(
    model: Any,
    latency: float | str,
    *,
    num_replicas: int | str | None = None,
    ray_actor_options: dict[str, Any] | None = None,
    max_batch: int | None = None,
    token: str | None = None,
    **options: Any,
) -> Any:
    """An application for `ray.serve.run`: replicas that each have the model and a `Batcher`.

    Args:
        model: what `open_model` takes. A file has to be at the same place on every machine.
        latency: the target, from a request's arrival at its replica: seconds, or `"50ms"`.
        num_replicas: as for Ray, `"auto"` too.
        ray_actor_options: as for Ray: `{"num_cpus": 2}` gives a replica two threads (one is Ray's
            default), `{"num_gpus": 1}` a GPU.
        max_batch: the most images of a batch.
        token: that a request over HTTP has to bear.
        options: of `open_model`: `device`, `imgsz`, `conf`, ...

    Raises:
        UsageError: if an argument cannot be meant.
        MissingExtraError: if ray[serve] is not installed.
    """
    serve = _ray_serve()
    parse_seconds(latency)
    if isinstance(model, str | Path):
        model = _absolute(str(model))
    made = serve.deployment(
        Replica,
        name=_NAME,
        num_replicas=num_replicas,
        ray_actor_options=ray_actor_options or {},
        max_ongoing_requests=_AT_ONCE,
        graceful_shutdown_timeout_s=2 * _CLOSING,
    )
    return made.bind(model, latency, max_batch=max_batch, token=token, **options)


class Replica:
    """One replica: called with an image by a handle, with a request by Ray's HTTP proxy."""

    def __init__(
        self,
        model: Any,
        latency: float | str,
        *,
        max_batch: int | None = None,
        token: str | None = None,
        **options: Any,
    ) -> None:
        self._model = open_model(model, **options)
        self._batcher = Batcher(self._model, latency, sizes=self._model.sizes, max_batch=max_batch)
        self._predictor = Predictor(self._batcher, Limits())
        self._token = token

    async def __call__(self, item: Any) -> Any:
        """The result for an image; the response to a request."""
        from starlette.requests import Request

        if isinstance(item, Request):
            return await self._respond(item)
        return await self._batcher(_checked(item), stream=REQUESTS)

    def __del__(self) -> None:
        # Ray calls it when it ends a replica; one that could not be made has no batcher
        if "_batcher" in vars(self):
            self._batcher.close(_CLOSING)
            self._predictor.close()
            self._model.close()

    async def _respond(self, request: Any) -> Any:
        place = "/" + request.url.path.rstrip("/").rpartition("/")[2]
        if place == "/health":
            return answer(200, {"model": self._model.name, "state": "serving"})
        if not self._is_allowed(request):
            return answer(401, {"error": "a request bears a token: Authorization: Bearer TOKEN"})
        if place != "/predict":
            return answer(404, {"error": "there are POST /predict and GET /health"})
        if request.method != "POST":
            return answer(405, {"error": "POST an image to /predict"}, headers={"Allow": "POST"})
        return await self._predictor.respond(request)

    def _is_allowed(self, request: Any) -> bool:
        borne = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self._token is None or secrets.compare_digest(borne.encode(), self._token.encode())


def serve_on_ray(
    model: Any,
    latency: float | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    show: Callable[[str], object] = print,
    stop: threading.Event | None = None,
    **options: Any,
) -> None:
    """Serve over HTTP on the Ray that is there, or on one of this machine, until `stop` or Ctrl-C.

    Args:
        model: what `open_model` takes.
        latency: the target.
        host: where to listen; with any other than this machine, requests need a token.
        port: of HTTP.
        token: by default made and shown where one is needed.
        show: is told where it listens.
        stop: ends it when set.
        options: of `deployment`.

    Raises:
        UsageError: if an argument cannot be meant, Ray Serve runs there already, or it cannot start
            (no model at that place, a port that is in use).
        MissingExtraError: if ray[serve] is not installed.
    """
    serve = _ray_serve()
    import ray

    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        token = secrets.token_urlsafe(24)
        show(f"requests bear the token: Authorization: Bearer {token}")
    application = deployment(model, latency, token=token, **options)
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=True)
    serves = False
    try:
        _refuse_beside_others(serve)
        serves = True
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(application, name=_NAME, route_prefix="/")
        except RuntimeError as error:
            raise UsageError(f"Ray Serve did not start it: {_reason(serve, error)}") from error
        show(f"serving on Ray: POST images to http://{host}:{port}/predict")
        (stop or threading.Event()).wait()
    except KeyboardInterrupt:
        pass
    finally:
        if serves:
            serve.shutdown()
        if is_ours:
            ray.shutdown()


def _refuse_beside_others(serve: Any) -> None:
    """Where Ray Serve runs, it listens as others said, and to end it is to end what is theirs.

    Raises:
        UsageError: if it runs.
    """
    status = serve.status()
    if status.proxies or status.applications:
        named = ", ".join(sorted(status.applications)) or "none"
        raise UsageError(
            f"Ray Serve runs there already (applications: {named}) and listens as others said; "
            "add an application to it: rightbatch.integrations.ray.deployment(..., token=...) for "
            "ray.serve.run, with a name and a route_prefix of its own"
        )


def _reason(serve: Any, error: RuntimeError) -> str:
    """What went wrong, of a traceback the last line.

    Ray keeps with the deployment what a replica raised; its own error only says that it did.
    """
    application = serve.status().applications.get(_NAME)
    deployments = application.deployments.values() if application is not None else ()
    told = "\n".join(one.message for one in deployments).strip() or str(error).strip()
    return told.splitlines()[-1].strip() if told else type(error).__name__


def _checked(image: Any) -> Image:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3:
        if image.shape[2] == 3:
            return image
    got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UsageError(f"an image is an H×W×3 uint8 RGB array, got {got}")


def _absolute(spec: str) -> str:
    """A replica runs in a folder of its own."""
    file, colon, function = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{Path(file).expanduser().resolve()}:{function}"
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.is_file() else spec


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise MissingExtraError("ray[serve]", "ray") from None
    return serve
