"""Traces: the allocations and frees of a step, in order, and their extrapolation to any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rightbatch._predict.reduction import reduction_buffers

KINDS = ("parameters", "gradients", "optimizer", "activations", "other")
BUFFER = "(a kernel's buffer)"
"""The place of what a kernel allocates and frees besides its results."""


class Sum(NamedTuple):
    """A sum over `dims` of a tensor of this shape, whose kernel may allocate two buffers.

    They are storages of the trace, the second one after the first, at `buffer`; their sizes are
    zero if the kernel needs none, so that a step has the same events at every batch size.
    """

    buffer: int
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    element_size: int

    def buffer_sizes(self) -> tuple[int, int]:
        """Return the bytes of both buffers."""
        return reduction_buffers(self.shape, self.dims, self.element_size) or (0, 0)


@dataclass(frozen=True)
class Trace:
    """The recorded allocations of a step.

    `order` has one entry per event: `i` if storage `i` is allocated, `~i` if it is freed.
    `sizes[i]` is its size in bytes, `kinds[i]` its purpose (one of `KINDS`), `places[i]` the module
    whose parameter it is, or whose forward pass allocated it. `phases` are (index into `order`,
    name) of each phase's start. `gemms` are the indices of the first matrix product of the forward
    and of the backward pass, where cuBLAS allocates its workspaces. `operators` are the names of
    all operators called.
    `uses` are the largest values of quantities that kernels limit (`kernel_limits`), `sums` are the
    sums whose buffers are among the storages. `streams[i]` is the stream on which storage `i` is
    allocated; empty if all are on one.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    places: tuple[str, ...]
    phases: tuple[tuple[int, str], ...]
    gemms: tuple[int, ...]
    operators: tuple[str, ...]
    uses: tuple[tuple[str, int], ...] = ()
    sums: tuple[Sum, ...] = ()
    streams: tuple[int, ...] = ()

    def live_bytes(self) -> Iterator[int]:
        """Iterate over the bytes alive after each event, not rounded."""
        total = 0
        for event in self.order:
            total += self.sizes[event] if event >= 0 else -self.sizes[~event]
            yield total

    @property
    def peak_bytes(self) -> int:
        """The maximum of the bytes alive, not rounded."""
        return max(self.live_bytes(), default=0)

    def breakdown(self) -> dict[str, int]:
        """Return the bytes by kind at the peak; their sum is the peak."""
        alive = self._alive_at_peak()
        return {kind: sum(self.sizes[i] for i in alive if self.kinds[i] == kind) for kind in KINDS}

    def activations(self) -> dict[str, int]:
        """Return the bytes of activations at the peak by module, largest first."""
        found: dict[str, int] = {}
        for i in self._alive_at_peak():
            if self.kinds[i] == "activations":
                found[self.places[i]] = found.get(self.places[i], 0) + self.sizes[i]
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def by_module(self) -> dict[str, int]:
        """Return the bytes of each module's parameters, and of what it keeps for the backward pass.

        Without a backward pass, of what it keeps at the peak.
        """
        first = self.phases[0][0] if self.phases else len(self.order)
        held = {e for e in self.order[:first] if e >= 0 and self.kinds[e] == "parameters"}
        backward = [index for index, name in self.phases if name == "backward"]
        alive = self._alive_after(backward[-1]) if backward else self._alive_at_peak()
        found: dict[str, int] = {}
        for i in sorted(held | {i for i in alive if self.kinds[i] == "activations"}):
            found[self.places[i]] = found.get(self.places[i], 0) + self.sizes[i]
        return {name or "outside modules": size for name, size in found.items()}

    def _alive_at_peak(self) -> set[int]:
        levels = list(self.live_bytes())
        return self._alive_after(levels.index(max(levels)) + 1) if levels else set()

    def _alive_after(self, events: int) -> set[int]:
        alive: set[int] = set()
        for event in self.order[:events]:
            if event >= 0:
                alive.add(event)
            else:
                alive.discard(~event)
        return alive

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for `from_dict`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Trace:
        """Return the trace of `to_dict`, also after JSON."""
        phases = tuple((int(index), str(name)) for index, name in fields["phases"])
        uses = tuple((str(name), int(value)) for name, value in fields.get("uses", ()))
        sums = tuple(
            Sum(buffer, tuple(shape), tuple(dims), size)
            for buffer, shape, dims, size in fields.get("sums", ())
        )
        special = ("phases", "uses", "sums")
        rest = {k: tuple(value) for k, value in fields.items() if k not in special}
        return cls(phases=phases, uses=uses, sums=sums, **rest)

    def settled(self, times: int) -> Trace:
        """Return the trace with its last training step repeated `times` times.

        Fragmentation grows over the first steps. If a step frees an allocation of the previous
        step, its repetition frees the oldest allocation of the same size in the step before it.
        """
        starts = [i for i, name in self.phases if name == "zero gradients"]
        stop = next((i for i, name in self.phases if name == "evaluation"), len(self.order))
        if len(starts) < 2:
            return self
        start = starts[-1]
        step = self.order[start:stop]
        made = [e for e in step if e >= 0]
        freed = {~e for e in step if e < 0}
        older = [e for e in self.order[:start] if e >= 0 and e in freed]
        kept = [e for e in made if e not in freed]
        waiting: dict[int, list[int]] = {}
        for e in kept:
            waiting.setdefault(self.sizes[e], []).append(e)
        follows = {e: rest.pop(0) for e in older if (rest := waiting.get(self.sizes[e]))}
        order = list(self.order[:stop])
        sizes, kinds, places = list(self.sizes), list(self.kinds), list(self.places)
        streams = list(self.streams)
        now = {e: e for e in made}  # allocation of the step -> its index in the last repetition
        for _ in range(times):
            new: dict[int, int] = {}
            for event in step:
                if event >= 0:
                    new[event] = len(sizes)
                    order.append(new[event])
                    sizes.append(self.sizes[event])
                    kinds.append(self.kinds[event])
                    places.append(self.places[event])
                    streams += self.streams[event : event + 1]
                elif ~event in new:
                    order.append(~new[~event])
                elif ~event in follows:
                    order.append(~now[follows[~event]])
            now = new
        ends = [~now.get(~e, ~e) if e < 0 else e for e in self.order[stop:]]
        return replace(
            self,
            order=(*order, *ends),
            sizes=tuple(sizes),
            kinds=tuple(kinds),
            places=tuple(places),
            streams=tuple(streams),
        )

    def condensed(self, parts: int = 32) -> Trace:
        """Return the trace with the evaluation replaced by `parts` equal storages of its peak.

        A framework evaluates image by image, so its single allocations are not linear in the batch
        size; their peak is.
        """
        stop = next((i for i, name in self.phases if name == "evaluation"), None)
        if stop is None:
            return self
        levels = list(self.live_bytes())
        base = levels[stop - 1] if stop else 0
        rise = max(max(levels[stop:], default=base) - base, 0)
        made = {e for e in self.order[:stop] if e >= 0}
        count = max(made, default=-1) + 1
        chunks = tuple(range(count, count + parts))
        return replace(
            self,
            order=(*self.order[:stop], *chunks, *(~chunk for chunk in chunks)),
            sizes=(*self.sizes[:count], *(rise // parts for _ in chunks)),
            kinds=(*self.kinds[:count], *("activations" for _ in chunks)),
            places=(*self.places[:count], *("evaluation" for _ in chunks)),
            gemms=tuple(i for i in self.gemms if i < stop),
            sums=tuple(one for one in self.sums if one.buffer < count),
        )

    def is_like(self, other: Trace) -> bool:
        """Return whether both have the same events in the same order, ignoring sizes."""
        sums, others = ([(s.buffer, len(s.shape), s.dims) for s in t.sums] for t in (self, other))
        return self.order == other.order and self.kinds == other.kinds and sums == others


def with_frees_in_order(order: Sequence[int], boundaries: Iterable[int]) -> tuple[int, ...]:
    """Sort the frees between two allocations by the time of their allocation.

    Frees without an allocation between them leave the allocator in the same state in any order. The
    end of an autocast region frees the copies of weights in the order of a hash table of pointers,
    which differs from run to run. No free is moved over one of the `boundaries`, which are indices.
    """
    found: list[int] = []
    starts = set(boundaries)
    run: list[int] = []
    for index, event in enumerate(order):
        if event >= 0 or index in starts:
            found += sorted(run, reverse=True)  # ~i decreases with i
            run = []
        if event >= 0:
            found.append(event)
        else:
            run.append(event)
    return (*found, *sorted(run, reverse=True))


@dataclass(frozen=True)
class Family:
    """Traces of one step at any batch size, with every allocation linear in the batch size.

    Two traces with the same events, at the batch sizes `low` and `high`, determine each line. An
    allocation that is smaller at `high` depends on more than the batch size, and is not reduced
    further. Buffers of sums, whose number of partial sums is not linear, follow from the shapes.
    """

    low: int
    high: int
    at_low: Trace
    at_high: Trace

    def predicts(self, trace: Trace, batch_size: int) -> bool:
        """Return whether the lines give the sizes of a trace at `batch_size`."""
        return self.at(batch_size).sizes == trace.sizes

    def at(self, batch_size: int) -> Trace:
        """Return the trace at `batch_size`, by linear extrapolation of the two traces."""
        if batch_size == self.low:
            return self.at_low
        at_high = dict(self.at_high.uses)
        uses = tuple(
            (name, self._on_line(value, at_high.get(name, value), batch_size))
            for name, value in self.at_low.uses
        )
        sizes = [
            max(self._on_line(a, b, batch_size), min(a, b)) if a != b else a
            for a, b in zip(self.at_low.sizes, self.at_high.sizes, strict=True)
        ]
        sums = []
        for low, high in zip(self.at_low.sums, self.at_high.sums, strict=True):
            lengths = zip(low.shape, high.shape, strict=True)
            shape = tuple(self._on_line(a, b, batch_size) for a, b in lengths)
            sums.append(low._replace(shape=shape))
            sizes[low.buffer : low.buffer + 2] = sums[-1].buffer_sizes()
        return replace(self.at_low, sizes=tuple(sizes), uses=uses, sums=tuple(sums))

    def _on_line(self, at_low: int, at_high: int, batch_size: int) -> int:
        return at_low + (at_high - at_low) * (batch_size - self.low) // (self.high - self.low)
