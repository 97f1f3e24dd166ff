"""Replay a recording of a real allocator through the simulator, and compare every decision.

Inputs are the requests, the releases of segments (the program called `empty_cache`) and the
addresses that the driver gave to new segments. Compared are the address of every allocation, and
the time and size of every new segment.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._predict.allocator import Allocator, AllocatorSettings
from rightbatch._predict.blocks import MIN_BLOCK, SMALL_SEGMENT, SMALL_SIZE
from rightbatch._units import format_bytes


@dataclass(frozen=True)
class ReplayResult:
    """The number of decisions, and how many of them match the recording; peaks in bytes."""

    allocations: int
    address_matches: int
    segments: int
    segment_matches: int
    peak_reserved_bytes: int
    peak_allocated_bytes: int
    events: int

    def __str__(self) -> str:
        return (
            f"{self.address_matches} of {self.allocations} addresses and {self.segment_matches} of "
            f"{self.segments} new segments match the recording; "
            f"peak reserved {format_bytes(self.peak_reserved_bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch predict --replay --json`."""
        return asdict(self)


_GZIP = b"\x1f\x8b"
MOST_BYTES = 1 << 30
"""Of an unpacked recording; a million events have about 40 MB."""


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    text = unpacker.decompress(data, MOST_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {format_bytes(MOST_BYTES)}")
    if not unpacker.eof:
        raise EOFError("the compressed file is cut off")
    return text


def read_recording(path: Path) -> dict[str, Any]:
    """Read a recording: JSON with `settings`, `initial` and `events`, optionally gzipped.

    Raises:
        UsageError: if the file does not exist or is not a recording.
    """
    try:
        raw = path.read_bytes()
        recording = json.loads(_unpacked(raw) if raw[:2] == _GZIP else raw)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise UsageError(f"{path} is not a recording: {error}") from error
    if not isinstance(recording, dict) or not isinstance(recording.get("events"), list):
        raise UsageError(
            f"{path} is not a recording: expected an object with `events`, a list of "
            "[kind, address, size] where kind is a (alloc), f (free), s (new segment) or "
            "S (segment released)"
        )
    return recording


def replay(recording: dict[str, Any]) -> ReplayResult:
    """Run a recording through the allocator.

    Raises:
        UsageError: for an invalid event, or a setting that is not simulated.
    """
    try:
        return _replayed(recording)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, UsageError):
            raise
        if type(error) is KeyError:
            raise UsageError(
                f"the recording frees an address that it did not allocate: {error}"
            ) from error
        raise UsageError(
            f"the recording is damaged: {type(error).__name__}: {error}; record it again"
        ) from error


def _replayed(recording: dict[str, Any]) -> ReplayResult:
    events = recording["events"]
    expected: list[tuple[int, int]] = []  # the next segment of the recording
    requested = matched = 0

    def new_segment(size: int) -> int | None:
        nonlocal requested, matched
        requested += 1
        if expected and expected[0][1] == size:
            matched += 1
        # A segment that is not in the recording gets an unused address.
        return expected.pop()[0] if expected else (1 << 50) + (requested << 34)

    allocator = Allocator(_settings(recording.get("settings", {})), new_segment=new_segment)
    _adopt(allocator, recording.get("initial", {}))
    allocations = addresses = segments = 0
    simulated: dict[int, int] = {}  # recorded address -> simulated, if they differ
    malloc, free = allocator.malloc, allocator.free
    for kind, address, size in events:
        if kind == "a":
            allocated = malloc(size)
            allocations += 1
            if allocated == address:
                addresses += 1
            else:
                simulated[address] = allocated
            expected.clear()
        elif kind == "f":
            free(simulated.pop(address, address) if simulated else address)
        elif kind == "s":
            segments += 1
            expected[:] = [(address, size)]
        elif kind == "S":
            allocator.release_segment(address)
        else:
            raise UsageError(f"unknown event {kind!r}; valid events are a, f, s and S")
    return ReplayResult(
        allocations,
        addresses,
        segments,
        matched,
        allocator.peak_reserved,
        allocator.peak_allocated,
        len(events),
    )


def _settings(recorded: dict[str, Any]) -> AllocatorSettings:
    divisions = recorded.get("roundup_power2_divisions", 0)
    if isinstance(divisions, dict):
        distinct = set(divisions.values())
        if len(distinct) > 1:
            raise UsageError(
                "roundup_power2_divisions that differ by size are not simulated; record with one "
                "value for all sizes"
            )
        divisions = distinct.pop() if distinct else 0
    if recorded.get("expandable_segments"):
        raise UsageError(
            "a recording with expandable segments cannot be replayed: it does not contain the "
            "start of their address ranges; record with expandable_segments:False"
        )
    max_split = recorded.get("max_split_size", -1)
    return AllocatorSettings(
        max_split_size=max_split if max_split and max_split > 0 else None,
        roundup_power2_divisions=divisions,
    )


def _adopt(allocator: Allocator, initial: dict[str, Any]) -> None:
    """Add the segments and blocks that existed when the recording started."""
    segments = sorted(initial.get("segments", []))
    starts = [address for address, _ in segments]
    live: dict[int, list[tuple[int, int]]] = {start: [] for start in starts}
    for address, size in initial.get("live", []):
        at = bisect_right(starts, address) - 1
        if at < 0 or address + size > segments[at][0] + segments[at][1]:
            raise UsageError(f"the initial block at {address} is not inside a segment")
        # A recording may have the requested sizes; a block has at least that, rounded up.
        live[starts[at]].append((address, -(-size // MIN_BLOCK) * MIN_BLOCK))
    for start, size in segments:
        blocks = live[start]
        # A segment of 2 MiB is in the small pool, unless it has a block of a large request.
        small = size == SMALL_SEGMENT and all(extent <= SMALL_SIZE for _, extent in blocks)
        allocator.adopt(start, size, blocks, small)
