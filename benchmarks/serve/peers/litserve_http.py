"""LitServe: one worker process, a largest batch and a wait for it to fill.

Without `from __future__ import annotations`: LitServe reads the annotation of `decode_request`.
"""

from typing import Annotated, Any

import litserve
from fastapi import Depends, Request

from benchmarks.serve.peers.command_line import asked
from benchmarks.serve.peers.worker import Worker


async def body(request: Request) -> bytes:
    return await request.body()


class Detector(litserve.LitAPI):
    path: str

    def setup(self, device: str) -> None:
        self.worker = Worker(self.path)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.worker(x) if isinstance(x, list) else self.worker([x])[0]

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    settings = asked()
    api = Detector(max_batch_size=settings.size, batch_timeout=settings.wait)
    api.path = settings.model
    # The queue between its processes that it has for many requests; the other one is slower.
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, timeout=30, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=settings.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
