"""The same open load on any server: raw pictures by POST, from one asyncio process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from rightbatch._serve.engine.service_times import quantile
from rightbatch._serve.engine.virtual_clock import Arrival
from rightbatch._serve.load.early_stopping import SHARE
from rightbatch._serve.load.load_test import LoadResult

HEADERS = {"Content-Type": "application/octet-stream"}


@dataclass
class _Outcomes:
    target: float
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    late: int = 0

    def answered(self, status: int, latency: float) -> None:
        if status == 200:
            self.latencies.append(latency)
        else:
            self.dropped["refused" if status == 503 else f"status {status}"] += 1
        self.late += status != 200 or latency > self.target

    def failed(self, error: Exception) -> None:
        self.dropped[type(error).__name__] += 1
        self.late += 1


def load(
    url: str,
    bodies: Sequence[bytes],
    arrivals: Sequence[Arrival],
    target: float,
    share: float = SHARE,
) -> tuple[LoadResult, float]:
    """What became of the schedule, and the share of a core that this client took.

    It stops when it is certain that less than `share` is in time.
    """
    return asyncio.run(_load(url, bodies, arrivals, target, share))


async def _load(
    url: str, bodies: Sequence[bytes], arrivals: Sequence[Arrival], target: float, share: float
) -> tuple[LoadResult, float]:
    outcomes = _Outcomes(target)
    bearable = (1 - share) * len(arrivals)
    timeout = aiohttp.ClientTimeout(total=1 + 10 * target)
    # As many connections as are under way at once: those of a peer's queue cost it nothing more.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=HEADERS
    ) as session:

        async def send(body: bytes, scheduled: float) -> None:
            outcomes.lags.append(time.monotonic() - scheduled)
            try:
                async with session.post(url, data=body) as response:
                    await response.read()
                    outcomes.answered(response.status, time.monotonic() - scheduled)
            except (aiohttp.ClientError, TimeoutError) as error:
                outcomes.failed(error)

        under_way: set[asyncio.Task[None]] = set()
        start = time.monotonic() + 0.02
        used = time.process_time()
        for (at, _), body in zip(arrivals, itertools.cycle(bodies), strict=False):
            if outcomes.late > bearable:
                break
            if (ahead := start + at - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            task = asyncio.create_task(send(body, start + at))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if outcomes.late > bearable:
            for task in under_way:
                task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        busy = (time.process_time() - used) / (time.monotonic() - start)
    sent = len(outcomes.lags)
    seconds = arrivals[sent - 1][0] + arrivals[-1][0] / len(arrivals)
    unanswered = sent - len(outcomes.latencies) - sum(outcomes.dropped.values())
    if unanswered:
        outcomes.dropped["unanswered"] = unanswered
    result = LoadResult(
        target,
        seconds,
        len(arrivals),
        sent,
        dict(outcomes.dropped),
        quantile(outcomes.lags, SHARE),
        outcomes.latencies,
    )
    return result, busy


def wait_until_quick(url: str, body: bytes, within: float, patience: float = 60.0) -> None:
    """Until the server is up and has nothing left to do: three answers in a row within a time."""
    asyncio.run(_wait(url, body, within, time.monotonic() + patience))


async def _wait(url: str, body: bytes, within: float, until: float) -> None:
    quick = 0
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=30), headers=HEADERS
    ) as session:
        while quick < 3:
            if time.monotonic() > until:
                raise TimeoutError(f"no server answers at {url}, or none that is quick enough")
            start = time.monotonic()
            try:
                async with session.post(url, data=body) as response:
                    await response.read()
                    is_quick = response.status == 200 and time.monotonic() - start < within
            except (aiohttp.ClientError, TimeoutError):
                is_quick = False
            quick = quick + 1 if is_quick else 0
            if not is_quick:
                await asyncio.sleep(0.1)
