"""Ray Serve: one replica, `@serve.batch` with a largest batch and a wait for it to fill."""

from __future__ import annotations

import asyncio
import os
import signal

# What its documentation says for throughput: HAProxy in front, replicas without a second thread.
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
# Its workers step back behind whatever else runs, the client for example, unless told not to.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serve.peers.command_line import Asked, asked
from benchmarks.serve.peers.worker import Worker


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Detector:
    def __init__(self, settings: Asked) -> None:
        self.worker = Worker(settings.model)
        self.detect.set_max_batch_size(settings.size)
        self.detect.set_batch_wait_timeout_s(settings.wait)

    @serve.batch
    async def detect(self, bodies: list[bytes]) -> list[list[list[float]]]:
        return await asyncio.to_thread(self.worker, bodies)  # meanwhile the next ones come

    async def __call__(self, request: Request) -> list[list[float]]:
        return await self.detect(await request.body())


if __name__ == "__main__":
    settings = asked()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
    serve.run(Detector.bind(settings), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
