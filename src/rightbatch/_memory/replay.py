"""A recording of a real allocator, replayed through ours: does it decide the same every time?

The recording's segment releases are inputs, since they come from the outside (`empty_cache`); so
are the addresses that the driver gave to new segments. Outputs are the address of every allocation
and when which new segment is asked for; both are compared with the recording.
"""

from __future__ import annotations

import gzip
import json
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._memory.allocator import Allocator, AllocatorSettings
from rightbatch._memory.blocks import MIN_BLOCK, SMALL_SEGMENT, SMALL_SIZE
from rightbatch._units import format_bytes


@dataclass(frozen=True)
class ReplayResult:
    """What came out as recorded, of how many; peaks in bytes."""

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
            f"{self.segments} new segments as recorded; "
            f"peak reserved {format_bytes(self.peak_reserved_bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `rightbatch predict --replay --json`."""
        return asdict(self)


def read_recording(path: Path) -> dict[str, Any]:
    """A recording: `settings`, `initial` and `events`, as JSON, gzipped or not.

    Raises:
        UsageError: if there is no such file, or it is something else.
    """
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        recording = json.loads(text)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
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
        UsageError: for an event that cannot be, or a setting that is not simulated.
    """
    events = recording["events"]
    expected: list[tuple[int, int]] = []  # the segment that the recording shows next
    asked = matched = 0

    def new_segment(size: int) -> int | None:
        nonlocal asked, matched
        asked += 1
        if expected and expected[0][1] == size:
            matched += 1
        # A segment that was not recorded has an address that nothing else has.
        return expected.pop()[0] if expected else (1 << 50) + (asked << 34)

    allocator = Allocator(_settings(recording.get("settings", {})), new_segment=new_segment)
    _adopt(allocator, recording.get("initial", {}))
    allocations = addresses = segments = 0
    ours: dict[int, int] = {}  # recorded address -> ours, where they differ
    malloc, free = allocator.malloc, allocator.free
    try:
        for kind, address, size in events:
            if kind == "a":
                got = malloc(size)
                allocations += 1
                if got == address:
                    addresses += 1
                else:
                    ours[address] = got
                expected.clear()
            elif kind == "f":
                free(ours.pop(address, address) if ours else address)
            elif kind == "s":
                segments += 1
                expected[:] = [(address, size)]
            elif kind == "S":
                allocator.release_segment(address)
            else:
                raise UsageError(f"unknown event {kind!r}; known are a, f, s and S")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the recording frees or names what it never allocated: {error}"
        ) from error
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
            raise UsageError("roundup_power2_divisions that differ by size are not simulated")
        divisions = distinct.pop() if distinct else 0
    if recorded.get("expandable_segments"):
        raise UsageError(
            "a recording with expandable segments cannot be replayed: it does not say where their "
            "ranges of addresses begin"
        )
    max_split = recorded.get("max_split_size", -1)
    return AllocatorSettings(
        max_split_size=max_split if max_split and max_split > 0 else None,
        roundup_power2_divisions=divisions,
    )


def _adopt(allocator: Allocator, initial: dict[str, Any]) -> None:
    """Take over what was there when the recording began."""
    segments = sorted(initial.get("segments", []))
    starts = [address for address, _ in segments]
    live: dict[int, list[tuple[int, int]]] = {start: [] for start in starts}
    for address, size in initial.get("live", []):
        at = bisect_right(starts, address) - 1
        if at < 0 or address + size > segments[at][0] + segments[at][1]:
            raise UsageError(f"the initial block at {address} lies in no segment")
        # A recording may have what was asked for; a block is at least that, rounded.
        live[starts[at]].append((address, -(-size // MIN_BLOCK) * MIN_BLOCK))
    for start, size in segments:
        blocks = live[start]
        # 2 MiB segments are the small pool's, unless a large request made one of just that size.
        small = size == SMALL_SEGMENT and all(extent <= SMALL_SIZE for _, extent in blocks)
        allocator.adopt(start, size, blocks, small)
