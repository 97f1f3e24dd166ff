"""The step of a workload on a GPU that is not here, at any batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._predict.allocator import AllocatorSettings
from rightbatch._predict.calibrate import Calibration, calibrated
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.outside import Outside, outside
from rightbatch._predict.simulate import Simulated, simulate
from rightbatch._predict.trace import Family, Trace
from rightbatch._worker import Failure

LOW, HIGH = 2, 4
"""Batch sizes that are followed; every allocation is a line through them."""
CHECKED = 7
"""A third one, at which the line must be right."""
STRAIGHT = 0.01
"""How far from its line a peak may be where single allocations are none."""
_UNBOUNDED = 2**20
_HELPS = 0.99
"""A variant that leaves more than this share of the peak saves nothing."""


class FollowedStep:
    """The step of a workload at any batch size, followed once per kind of GPU, allocated for each.

    `process` has run nothing; `processes` is how many GPUs train together. `beside_context` says
    that a limit is what there is beside the CUDA context. After the first answer `examples` is what
    one epoch has, `how` is `fake` or `real`, and `notes` say what a person should know.
    """

    def __init__(
        self,
        process: FollowProcess,
        *,
        processes: int = 1,
        inference: bool = False,
        beside_context: bool = False,
    ) -> None:
        self._beside_context = beside_context
        self._process = process
        self._processes = processes
        self._inference = inference
        self._families: dict[str, Family | None] = {}
        self._single: dict[tuple[str, int], Trace] = {}
        self._largest: dict[tuple[float, int], int | None] = {}
        self._calibrations: dict[float, Calibration | None] = {}
        self.examples: int | None = None
        self.how = "fake"
        self.notes: list[str] = []

    def at(self, batch_size: int, capability: float) -> Trace:
        """The trace at `batch_size`: by its lines, or followed by itself where it has none."""
        kind = _kind(capability)
        if kind not in self._families:
            self._families[kind] = self._family(capability)
        family = self._families[kind]
        if family is not None:
            return family.at(batch_size)
        if self.how == "real" and batch_size > CHECKED:
            raise UsageError(
                "this step allocates differently from size to size, and needs real tensors: it "
                "can only be measured; run `rightbatch fit` where the device is"
            )
        if (kind, batch_size) not in self._single:
            self._single[kind, batch_size] = self._follow([batch_size], capability)[0]
        return self._single[kind, batch_size]

    def outside(self, trace: Trace, capability: float) -> Outside:
        gradients = sum(
            size
            for size, kind in zip(trace.sizes, trace.kinds, strict=True)
            if kind == "parameters"
        )
        largest = max(trace.sizes, default=0)
        if capability not in self._calibrations:
            self._calibrations[capability] = calibrated(capability)
        return outside(
            capability,
            trace.operators,
            largest,
            gradients,
            self._processes,
            self._calibrations[capability],
        )

    def simulated(
        self, batch_size: int, capability: float, capacity: int | None = None
    ) -> Simulated | None:
        trace = self.at(batch_size, capability)
        workspace = self.outside(trace, capability).cublas
        return simulate(trace, AllocatorSettings(capacity=capacity), workspace)

    def largest(self, limit: int, capability: float) -> int | None:
        """The largest batch whose simulated run survives beside what lies outside; by bisection."""
        if (capability, limit) not in self._largest:
            self._largest[capability, limit] = self._search(limit, capability)
        return self._largest[capability, limit]

    def saved(
        self, batch_size: int, capability: float, variants: Mapping[str, dict[str, Any]]
    ) -> dict[str, int]:
        """Bytes that each variant would save of the peak at this size, where it saves any."""
        before = self.at(batch_size, capability).peak_bytes
        tasks = [{"batch_size": batch_size} | variant for variant in variants.values()]
        saved = {}
        for name, answer in zip(variants, self._asked(tasks, capability), strict=True):
            if answer["outcome"] == "ok":  # else no stack to checkpoint, no batch to cut
                left = Trace.from_dict(answer["trace"]).peak_bytes
                if left < _HELPS * before:
                    saved[name] = before - left
        return saved

    def _search(self, limit: int, capability: float) -> int | None:
        def room(size: int) -> int:
            beside = self.outside(self.at(size, capability), capability)
            return limit - beside.high + (beside.context[1] if self._beside_context else 0)

        def survives(size: int) -> bool:
            left = room(size)
            return left > 0 and self.simulated(size, capability, left) is not None

        # What tensors occupy is a line, and the allocator adds little: its end is a good guess.
        low, high = (self.at(size, capability).peak_bytes for size in (LOW, HIGH))
        most = self.examples or _UNBOUNDED
        per_example = max((high - low) / (HIGH - LOW), 1.0)
        guess = int(min(max(LOW + (room(LOW) - low) / per_example, 1), most))
        return _last(survives, guess, most)

    def _family(self, capability: float) -> Family | None:
        """The lines of this step; None, with a note, where allocations are no lines."""
        low, high, checked = self._follow([LOW, HIGH, CHECKED], capability)
        if low.is_like(high) and low.is_like(checked):
            family = Family(LOW, HIGH, low, high)
            if family.at(CHECKED).sizes == checked.sizes:
                return family
        if self.how == "real":
            # Larger sizes cannot be followed, and some allocations depend on the numbers: that the
            # peak is a line is what can be had.
            low, high, checked = (trace.condensed() for trace in (low, high, checked))
            if low.is_like(high) and low.is_like(checked):
                family = Family(LOW, CHECKED, low, checked)
                error = family.at(HIGH).peak_bytes / high.peak_bytes - 1
                if abs(error) <= STRAIGHT:
                    self.notes.append(
                        "some allocations depend on the data; the peak is a line in the batch size "
                        f"within {abs(error):.2%}"
                    )
                    return family
        self.notes.append("allocations are no lines in the batch size; every size is followed")
        return None

    def _follow(self, sizes: list[int], capability: float) -> list[Trace]:
        """Traces at these sizes.

        Raises:
            UsageError: if the workload's step cannot be followed.
            WorkloadError: if it fails for a reason of its own.
        """
        traces = []
        for answer in self._asked([{"batch_size": size} for size in sizes], capability):
            if answer["outcome"] != "ok":
                failure = Failure(**answer["failure"])
                raise failure.as_error("the workload cannot be followed")
            traces.append(Trace.from_dict(answer["trace"]))
        return traces

    def _asked(self, tasks: list[dict[str, Any]], capability: float) -> list[dict[str, Any]]:
        more = {"capability": capability, "inference": self._inference}
        followed = self._process.follow([task | more for task in tasks])
        self.examples = followed.examples
        self.how = followed.how
        self.notes += [note for note in followed.notes if note not in self.notes]
        return followed.answers


def _last(survives: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The last of 1 to `most` that survives, if all before it do; None if none does."""
    stride = max(1, guess // 64)
    if survives(guess):
        low = guess
        while low + stride <= most and survives(low + stride):
            low, stride = low + stride, 2 * stride
        high = min(low + stride, most + 1)
    else:
        high = guess
        while high > 1 and not survives(max(high - stride, 1)):
            high, stride = max(high - stride, 1), 2 * stride
        low = max(high - stride, 1) if high > 1 else 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if survives(middle) else (low, middle)
    return low or None


def _kind(capability: float) -> str:
    """GPUs whose kernels make the same allocations."""
    return "flash" if capability >= 8.0 else "no flash"
