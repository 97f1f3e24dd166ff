"""The memory of a workload's step at any batch size, on a GPU you don't have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._predict.allocator import AllocatorSettings
from rightbatch._predict.by_phase import by_phase
from rightbatch._predict.calibrate import Calibration, calibrated
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.kernel_limits import exceeded
from rightbatch._predict.options import Sharding
from rightbatch._predict.overhead import Overhead, process_overhead
from rightbatch._predict.remedies import Remedies, bytes_saved, tasks_of
from rightbatch._predict.simulate import Simulated, simulate
from rightbatch._predict.trace import Family, Trace
from rightbatch._worker import Failure

LOW, HIGH = 2, 4
"""Batch sizes that are followed; each allocation is linear in the batch size between and beyond."""
CHECKED = 7
"""A third batch size, at which the linear model is verified."""
PEAK_TOLERANCE = 0.01
"""Accepted error of a linear peak, if single allocations are not linear."""
_UNBOUNDED = 2**20
_FAR = 4
"""Times the size of the largest followed batch that a guess may be, if sizes are not linear."""


class FollowedStep:
    """A workload's step, followed once per kind of GPU and simulated for each GPU.

    `process` must not have run anything; `processes` is the number of GPUs that train together,
    over which `sharding` shards. `at_one_size` says that only one size is asked for, which is then
    followed itself.
    `beside_context` says that a limit does not include the CUDA context, `calibrated` returns what
    was measured outside the allocator on GPUs of a compute capability. After the first trace,
    `examples` is the number of examples in an epoch, `how` is `fake` or `real`, and `notes` are for
    the user.
    """

    def __init__(
        self,
        process: FollowProcess,
        *,
        processes: int = 1,
        sharding: Sharding | None = None,
        inference: bool = False,
        at_one_size: bool = False,
        beside_context: bool = False,
        calibrated: Callable[[float], Calibration | None] = calibrated,
    ) -> None:
        self._calibrated = calibrated
        self._beside_context = beside_context
        self._process = process
        self._at_one_size = at_one_size
        self._processes = processes
        self._sharding = sharding
        self._inference = inference
        self._families: dict[str, Family | None] = {}
        self._single: dict[tuple[str, int], Trace] = {}
        self._largest: dict[tuple[float, int], int | None] = {}
        self._calibrations: dict[float, Calibration | None] = {}
        self.examples: int | None = None
        self.how = "fake"
        self.notes: list[str] = []
        self._grows_in_steps = False

    def at(self, batch_size: int, capability: float) -> Trace:
        """Return the trace at `batch_size`, by the linear model or by following that size.

        Raises:
            UsageError: if the step is not linear and this size cannot be followed.
        """
        kind = _kind(capability)
        if kind not in self._families:
            self._families[kind] = None if self._at_one_size else self._family(capability)
        family = self._families[kind]
        if family is not None:
            return family.at(batch_size)
        if self.how == "real" and batch_size > CHECKED:
            raise UsageError(
                "the allocations of this step are not linear in the batch size, and it requires "
                "real tensors, so it can only be measured; run `rightbatch fit` on the device"
            )
        if (kind, batch_size) not in self._single:
            self._single[kind, batch_size] = self._follow([batch_size], capability)[0]
        return self._single[kind, batch_size]

    def exceeded_limit(self, batch_size: int, capability: float) -> str | None:
        """Return the limit of a kernel that ends a step of this size with any memory, if any."""
        return exceeded(self.at(batch_size, capability).uses)

    def overhead(self, trace: Trace, capability: float) -> Overhead:
        """Return the memory of the process besides the trace's tensors."""
        gradients = sum(
            size
            for size, kind in zip(trace.sizes, trace.kinds, strict=True)
            if kind == "parameters"
        )
        largest = max(trace.sizes, default=0)
        if capability not in self._calibrations:
            self._calibrations[capability] = self._calibrated(capability)
        return process_overhead(
            capability,
            trace.operators,
            largest,
            gradients,
            self._processes,
            self._calibrations[capability],
            self._sharding,
        )

    def simulated(
        self, batch_size: int, capability: float, capacity: int | None = None
    ) -> Simulated | None:
        """Simulate the step with `capacity` bytes for the allocator; None if it runs out."""
        trace = self.at(batch_size, capability)
        workspace = self.overhead(trace, capability).cublas
        return simulate(trace, AllocatorSettings(capacity=capacity), workspace)

    def room(self, batch_size: int, limit: int, capability: float) -> int:
        """Return the bytes of `limit` that a step of this size leaves; negative if it fails."""
        available = self._available(batch_size, limit, capability)
        simulated = self.simulated(batch_size, capability)
        assert simulated is not None  # without a limit it cannot run out
        left = available - simulated.reserved_bytes
        if self.exceeded_limit(batch_size, capability) is not None:
            return min(left, -1)
        if left < 0 and self._has_memory(batch_size, limit, capability):
            return 0  # the allocator returns what it keeps in reserve, and tries again
        return left

    def largest(self, limit: int, capability: float) -> int | None:
        """Return the largest batch that fits into `limit` bytes with the overhead; by bisection."""
        if (capability, limit) not in self._largest:
            self._largest[capability, limit] = self._search(limit, capability)
        return self._largest[capability, limit]

    def bytes_saved(self, batch_size: int, capability: float, remedies: Remedies) -> dict[str, int]:
        """Return the bytes that each remedy saves of the peak at this size, if it saves any.

        With real tensors nothing is followed, and a note says so: a batch of any size may not fit
        into this machine, and half precision takes minutes on a CPU.
        """
        peak = self.at(batch_size, capability).peak_bytes
        if self.how == "real":
            self.notes.append("ways to save memory are not followed with real tensors")
            return {}
        answers = self._request(tasks_of(remedies, batch_size), capability)
        return bytes_saved(peak, remedies, answers)

    def _search(self, limit: int, capability: float) -> int | None:
        def survives(size: int) -> bool:
            is_limited = self.exceeded_limit(size, capability) is not None
            return not is_limited and self._has_memory(size, limit, capability)

        most = self.examples or _UNBOUNDED
        guess = self._guess(lambda size: self._available(size, limit, capability), most, capability)
        largest = _largest_surviving(survives, guess, most)
        if largest != most:
            failing = (largest or 0) + 1
            limited = self.exceeded_limit(failing, capability)
            note = f"{limited}: a batch of {failing} fails with memory left"
            if limited is not None and note not in self.notes:
                if self._has_memory(failing, limit, capability):
                    self.notes.append(note)
        return largest

    def _available(self, size: int, limit: int, capability: float) -> int:
        """Return the bytes for the allocator."""
        overhead = self.overhead(self.at(size, capability), capability)
        return limit - overhead.kept + (overhead.context[1] if self._beside_context else 0)

    def _has_memory(self, size: int, limit: int, capability: float) -> bool:
        available = self._available(size, limit, capability)
        return available > 0 and self.simulated(size, capability, available) is not None

    def _guess(self, room: Callable[[int], int], most: int, capability: float) -> int:
        """Return about the largest size, by the line through the peaks of two sizes.

        The tensors' bytes are linear in the batch size and the allocator adds little. If they are
        not linear, the line is followed upwards, not far at a time: a batch that is far too large
        does not fit into this machine either.
        """
        size, other = HIGH, LOW
        while True:
            low, high = (self.at(one, capability).peak_bytes for one in (other, size))
            per_example = max((high - low) / (size - other), 1.0)
            reached = int(min(max(other + (room(other) - low) / per_example, 1), most))
            if self._families[_kind(capability)] is not None or reached <= _FAR * size:
                return reached
            size, other = min(_FAR * size, most), size

    def _family(self, capability: float) -> Family | None:
        """Return the linear model of this step; None, with a note, if it is not linear."""
        low, high, checked = self._follow([LOW, HIGH, CHECKED], capability)
        if self._grows_in_steps or low.sizes == high.sizes:
            self.notes.append(
                "the sizes of a few examples' batch do not tell those of larger ones, which may be "
                "padded or packed; every size is followed separately"
            )
            return None
        if low.is_like(high) and low.is_like(checked):
            family = Family(LOW, HIGH, low, high)
            if family.predicts(checked, CHECKED):
                return family
        if self.how == "real":
            # Larger sizes cannot be followed, and some allocations depend on the values. Then the
            # model only has to be right about the peak.
            for reduced in (Trace.condensed, by_phase):
                at_low, at_high, at_checked = map(reduced, (low, high, checked))
                if not (at_low.is_like(at_high) and at_low.is_like(at_checked)):
                    continue
                family = Family(LOW, CHECKED, at_low, at_checked)
                error = family.at(HIGH).peak_bytes / high.peak_bytes - 1
                if abs(error) <= PEAK_TOLERANCE:
                    self.notes.append(
                        "some allocations depend on the data; the peak is linear in the batch size "
                        f"within {abs(error):.2%}"
                    )
                    return family
        self.notes.append(
            "allocations are not linear in the batch size; every size is followed separately"
        )
        return None

    def _follow(self, sizes: list[int], capability: float) -> list[Trace]:
        """Return the traces at these sizes.

        Raises:
            UsageError: if the workload's step cannot be followed.
            WorkloadError: if the workload failed with an error other than out-of-memory.
        """
        traces = []
        for answer in self._request([{"batch_size": size} for size in sizes], capability):
            if answer["outcome"] != "ok":
                failure = Failure(**answer["failure"])
                raise failure.as_error("the workload's step cannot be followed")
            traces.append(Trace.from_dict(answer["trace"]))
        return traces

    def _request(self, tasks: list[dict[str, Any]], capability: float) -> list[dict[str, Any]]:
        more: dict[str, Any] = {"capability": capability, "inference": self._inference}
        if self._sharding is not None:
            more |= {"sharding": self._sharding, "ranks": self._processes}
        followed = self._process.follow([task | more for task in tasks])
        self.examples = followed.examples
        self.how = followed.how
        answers = followed.answers
        self._grows_in_steps |= any(one.get("batch_grows_in_steps", False) for one in answers)
        self.notes += [note for note in followed.notes if note not in self.notes]
        return answers


def _largest_surviving(survives: Callable[[int], bool], guess: int, most: int) -> int | None:
    """Return the largest of 1 to `most` that survives, assuming all below it do; None if none."""
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
    """Return the kind of GPUs whose kernels make the same allocations."""
    return "flash" if capability >= 8.0 else "no flash"
