"""BentoML: one worker, adaptive batching, its `max_latency_ms` the target or what `wait` says.

It refuses what it expects to be later than that, which is more than what would be: its own warning
says to raise it then.

Its declared inputs would be parsed from JSON or a form; here the body is the picture, as for the
others.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")

import bentoml
from _bentoml_sdk.io_models import IODescriptor

from benchmarks.serve.peers.command_line import asked
from benchmarks.serve.peers.worker import Worker

SETTINGS = "RIGHTBATCH_BENCHMARK_SETTINGS"  # the workers import this module, without arguments


class Body(IODescriptor):
    __root_input__ = True

    @classmethod
    async def from_http_request(cls, request: Any, serde: Any) -> list[bytes]:
        return [await request.body()]


def _settings() -> list[str]:
    return os.environ.setdefault(SETTINGS, "\n".join(sys.argv[1:])).split("\n")


sys.argv[1:] = _settings()
_asked = asked()


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 30},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Detector:
    def __init__(self) -> None:
        self.worker = Worker(_asked.model)

    @bentoml.api(
        route="/predict",
        batchable=True,
        max_batch_size=_asked.size,
        max_latency_ms=round(1000 * (_asked.wait or _asked.target)),
        input_spec=Body,
    )
    def predict(self, bodies: Any) -> list:
        return self.worker(bodies)


if __name__ == "__main__":
    bentoml.serve(
        "benchmarks.serve.peers.bentoml_http:Detector",
        host="127.0.0.1",
        port=_asked.port,
        blocking=True,
    )
