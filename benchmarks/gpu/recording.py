"""The CUDA allocator's history as a recording that `rightbatch predict --replay` takes.

torch records with `torch.cuda.memory._record_memory_history` and gives what it recorded in
`torch.cuda.memory._snapshot` (torch 2.6 to 2.14). A recording has `settings`, `initial` (what was
there when it began), `events` of [kind, address, size], and `final`, the state at its end.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_KINDS = {
    "alloc": "a",
    # A block is free for others when its streams have passed, which the second of the two says.
    "free_completed": "f",
    "segment_alloc": "s",
    "segment_free": "S",
}
_LIVE = ("active_allocated", "active_pending_free", "active_awaiting_free")


def start() -> dict[str, Any]:
    """Record from now on, without stack traces; the snapshot of what is there already."""
    import torch

    before: dict[str, Any] = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history("all", context=None)
    return before


def stop() -> dict[str, Any]:
    """The snapshot with the history since `start`; recording ends."""
    import torch

    torch.cuda.synchronize()
    after: dict[str, Any] = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(None)
    return after


def recording_of(
    before: Mapping[str, Any], after: Mapping[str, Any], what: str, device: int = 0
) -> dict[str, Any]:
    """The recording between two snapshots of one device, in words `what` it is of."""
    traces = after.get("device_traces") or []
    trace = traces[device] if device < len(traces) else []
    events = [
        [_KINDS[entry["action"]], entry["addr"], entry["size"]]
        for entry in trace
        if entry["action"] in _KINDS
    ]
    return {
        "what": what,
        "settings": _plain(after.get("allocator_settings", {})),
        "streams": len({entry.get("stream", 0) for entry in trace}),
        "initial": {
            "segments": _segments(before, device),
            # Whole blocks: what was not split off is not free either.
            "live": [[address, size] for address, _, size in _live(before, device)],
        },
        "events": events,
        "final": {
            "segments": _segments(after, device),
            "live": [list(block) for block in _live(after, device)],
        },
    }


def write(recording: Mapping[str, Any], path: Path) -> None:
    """As gzipped JSON."""
    path.write_bytes(gzip.compress(json.dumps(recording).encode()))


def _of(snapshot: Mapping[str, Any], device: int) -> Iterator[Mapping[str, Any]]:
    return (segment for segment in snapshot["segments"] if segment.get("device", 0) == device)


def _segments(snapshot: Mapping[str, Any], device: int) -> list[list[int]]:
    return sorted([segment["address"], segment["total_size"]] for segment in _of(snapshot, device))


def _live(snapshot: Mapping[str, Any], device: int) -> Iterator[tuple[int, int, int]]:
    """Address, bytes asked for and bytes of every block that is in use.

    Blocks tile their segment; old snapshots do not say their addresses.
    """
    for segment in _of(snapshot, device):
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] in _LIVE:
                yield address, block.get("requested_size", block["size"]), block["size"]
            address += block["size"]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what JSON does not know."""
    return json.loads(json.dumps(dict(settings), default=str))
