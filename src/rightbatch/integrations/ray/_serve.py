"""Ray Serve: one engine per replica, on all machines of a Ray cluster.

    from ray import serve
    from rightbatch.integrations.ray import deployment

    handle = serve.run(deployment("yolo26n.onnx", latency="100ms", num_replicas=4))
    result = handle.remote(image).result()          # H×W×3 uint8 RGB

The HTTP routes are those of `rightbatch serve --http`: `POST /predict` with an image, and
`GET /health`. A request that would be late is refused with 503 and `Retry-After`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import REQUESTS
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Image
from rightbatch._serve.signals import signals
from rightbatch._serve.web.images import Limits
from rightbatch._serve.web.predict import Predictor, answer, health_answer
from rightbatch._units import parse_seconds
from rightbatch._web.access import AccessControl, is_this_machine

_MAX_ONGOING = 1000  # requests per replica: the engine, not Ray's router, refuses late ones
_CLOSE_TIMEOUT = 10.0  # seconds to finish accepted requests when a replica ends
_DRAIN_POLL = 0.2  # seconds between two looks of a replica whether all are finished
_PASS_ON = 0.5  # seconds for Ray's proxy to pass on the last responses
_POLL = 0.2  # seconds between two looks whether to stop
_NAME = "rightbatch"  # of the application and of its deployment


def deployment(
    model: Any,
    latency: float | str,
    *,
    num_replicas: int | str | None = None,
    ray_actor_options: dict[str, Any] | None = None,
    max_batch: int | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    stop_within: float = _CLOSE_TIMEOUT,
    **options: Any,
) -> Any:
    """Return an application for `ray.serve.run`; each replica has the model and a `Batcher`.

    Args:
        model: an argument of `open_model`. A file must exist at the same path on every machine.
        latency: target from a request's arrival at its replica: seconds, or `"50ms"`.
        num_replicas: as in Ray, including `"auto"`.
        ray_actor_options: as in Ray: `{"num_cpus": 2}` gives a replica two threads (Ray's default
            is one), `{"num_gpus": 1}` a GPU.
        max_batch: the most images in a batch.
        token: that HTTP requests must send.
        hosts: accepted values of the Host header of HTTP requests, `["*"]` for any; by default the
            names of this machine, or any if there is a token.
        stop_within: seconds to finish the accepted requests when a replica ends.
        options: of `open_model`: `device`, `imgsz`, `conf`, ...

    Raises:
        UsageError: if an argument is invalid.
        MissingExtraError: if ray[serve] is not installed.
    """
    serve = _ray_serve()
    parse_seconds(latency)
    if isinstance(model, str | Path):
        model = _absolute(str(model))
    replicas = serve.deployment(
        Replica,
        name=_NAME,
        num_replicas=num_replicas,
        ray_actor_options=ray_actor_options or {},
        max_ongoing_requests=_MAX_ONGOING,
        graceful_shutdown_wait_loop_s=_DRAIN_POLL,
        graceful_shutdown_timeout_s=stop_within + _CLOSE_TIMEOUT,  # the model is closed, too
    )
    return replicas.bind(model, latency, max_batch=max_batch, token=token, hosts=hosts, **options)


class Replica:
    """One replica, called with an image by a handle and with a request by Ray's HTTP proxy."""

    def __init__(
        self,
        model: Any,
        latency: float | str,
        *,
        max_batch: int | None = None,
        token: str | None = None,
        hosts: Collection[str] | None = None,
        **options: Any,
    ) -> None:
        self._model = open_model(model, **options)
        self._batcher = Batcher(self._model, latency, sizes=self._model.sizes, max_batch=max_batch)
        self._predictor = Predictor(self._batcher, Limits())
        self._access = AccessControl(_no_app, token=token, hosts=hosts)

    async def __call__(self, item: Any) -> Any:
        """Return the result of an image, or the response to a request."""
        from starlette.requests import Request

        if isinstance(item, Request):
            return await self._respond(item)
        return await self._batcher(_checked(item), stream=REQUESTS)

    def __del__(self) -> None:
        # Ray calls it when a replica ends; after an error in __init__ there is no batcher.
        if "_batcher" in vars(self):
            self._batcher.close(_CLOSE_TIMEOUT)
            self._predictor.close()
            self._model.close()

    async def _respond(self, request: Any) -> Any:
        place = "/" + request.url.path.rstrip("/").rpartition("/")[2]
        refusal = await self._access.refusal(request.scope | {"path": place})
        if refusal is not None:
            return answer(refusal[0], {"error": refusal[1]})
        if place == "/health":
            content = {"model": self._model.name, "state": "serving"}
            return health_answer(content, self._batcher.attainment.seconds_without_success)
        if place != "/predict":
            return answer(404, {"error": "no such path; use POST /predict or GET /health"})
        if request.method != "POST":
            return answer(405, {"error": "POST an image to /predict"}, headers={"Allow": "POST"})
        return await self._predictor.respond(request)


def serve_on_ray(
    model: Any,
    latency: float | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    show: Callable[[str], object] = print,
    stop: threading.Event | None = None,
    stop_within: float = _CLOSE_TIMEOUT,
    **options: Any,
) -> None:
    """Serve over HTTP on the current Ray cluster, or a new local one, until it is told to stop.

    `stop`, SIGTERM and Ctrl-C end it: requests that were accepted are finished first.

    Args:
        model: an argument of `open_model`.
        latency: the target; see `deployment`.
        host: bind address; a non-loopback address requires a token.
        port: of HTTP.
        token: that requests must send; by default generated and shown if it is required.
        show: called with messages.
        stop: ends serving when it is set.
        stop_within: seconds to finish the accepted requests.
        options: of `deployment`.

    Raises:
        UsageError: if an argument is invalid, Ray Serve runs already, or it cannot start (the model
            does not exist, the port is in use).
        MissingExtraError: if ray[serve] is not installed.
    """
    serve = _ray_serve()
    import ray

    if token is None and not is_this_machine(host):
        token = secrets.token_urlsafe(24)
        show(f"requests must send this token: Authorization: Bearer {token}")
    application = deployment(model, latency, token=token, stop_within=stop_within, **options)
    starts_ray = not ray.is_initialized()
    if starts_ray:
        ray.init(include_dashboard=False, log_to_driver=True)
    is_serving = False
    try:
        _check_not_running(serve)
        is_serving = True
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(application, name=_NAME, route_prefix="/")
        except RuntimeError as error:
            raise UsageError(
                f"Ray Serve could not start the application: {_reason(serve, error)}"
            ) from error
        with signals() as signalled:  # after Ray has set its own handlers
            show(f"serving on Ray: POST images to http://{host}:{port}/predict")
            while not (signalled.wait(_POLL) or (stop is not None and stop.is_set())):
                pass
            _drain(serve)
    except KeyboardInterrupt:
        pass
    finally:
        if is_serving:
            serve.shutdown()
        if starts_ray:
            ray.shutdown()


def _drain(serve: Any) -> None:
    """Remove the application; its replicas finish what they have. `shutdown` ends Ray's proxy at
    once, with the connections that wait for a response."""
    try:
        serve.delete(_NAME)
    except TimeoutError:  # longer than Ray waits
        return
    time.sleep(_PASS_ON)


def _check_not_running(serve: Any) -> None:
    """Check that Ray Serve is not running: its HTTP options and applications belong to others.

    Raises:
        UsageError: if it is running.
    """
    status = serve.status()
    if status.proxies or status.applications:
        names = ", ".join(sorted(status.applications)) or "none"
        raise UsageError(
            f"Ray Serve runs already (applications: {names}) with its own host and port; add an "
            "application to it: pass rightbatch.integrations.ray.deployment(..., token=...) to "
            "ray.serve.run, with a name and a route_prefix of its own"
        )


def _reason(serve: Any, error: RuntimeError) -> str:
    """Return the last line of the replica's error, which Ray stores with the deployment."""
    application = serve.status().applications.get(_NAME)
    deployments = application.deployments.values() if application is not None else ()
    text = "\n".join(one.message for one in deployments).strip() or str(error).strip()
    return text.splitlines()[-1].strip() if text else type(error).__name__


async def _no_app(*_: Any) -> None:
    """Ray calls the replica, not an application."""


def _checked(image: Any) -> Image:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3:
        if image.shape[2] == 3:
            return image
    got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UsageError(f"an image must be an H×W×3 uint8 RGB array, got {got}")


def _absolute(spec: str) -> str:
    """Return a spec with an absolute path: replicas have another working directory."""
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
