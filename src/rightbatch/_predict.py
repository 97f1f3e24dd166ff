"""`predict`: peak memory and the largest batch on a GPU that is not here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._factory import resolve
from rightbatch._memory.gpus import GPU, catalogue, find_gpu
from rightbatch._memory.outside import Outside
from rightbatch._memory.replay import ReplayResult, read_recording
from rightbatch._memory.replay import replay as replay_recording
from rightbatch._memory.step import FollowedStep
from rightbatch._memory.trace import Trace
from rightbatch._probe import ProbeProcess, header_for
from rightbatch._progress import Live
from rightbatch._units import format_bytes, parse_bytes

DEFAULT_CAPABILITY = 8.0
BAND = (0.99, 1.01)
"""Of allocated and reserved peaks. The one whole step that could be compared with a recording came
out 0.1% above in allocated and 0.4% below in reserved memory (docs/benchmarks.md)."""
_MODULES_SHOWN = 5
_VARIANTS: dict[str, dict[str, Any]] = {
    "bf16 precision": {"precision": "bf16"},
    "activation checkpointing": {"checkpointing": True},
    "a fused optimizer": {"optimizer": "fused"},
    "an optimizer that loops over parameters": {"optimizer": "loop"},
    "accumulation over 2 micro-batches": {"accumulation": 2},
}


@dataclass(frozen=True)
class GPUFit:
    """The largest batch on one GPU; None if not even one example fits."""

    gpu: str
    kind: str
    usable_bytes: int
    largest_batch_size: int | None
    is_verified: bool


@dataclass(frozen=True)
class Prediction:
    """What a training step at `batch_size` holds of a GPU, in bytes; nothing was run there.

    `allocated_peak_bytes` is what tensors occupy, `reserved_peak_bytes` what the caching allocator
    holds for them, `process_bytes` what the driver charges, with context and workspaces;
    `allocated_band` and `reserved_band` are the bounds of the first two. `breakdown` is of the
    tensors at their peak, `activations` by module. `remedies` are the bytes that each would save at
    this batch size. `largest_batch_size` is None without a GPU or a memory to fit into, and where
    nothing fits. `how` says whether fake or real tensors were followed. `trace` is what happened.
    """

    batch_size: int
    gpu: str | None
    limit_bytes: int | None
    allocated_peak_bytes: int
    allocated_band: Mapping[str, int]
    reserved_peak_bytes: int
    reserved_band: Mapping[str, int]
    process_bytes: Mapping[str, int]
    breakdown: Mapping[str, int]
    activations: Mapping[str, int]
    workspace_bytes: int
    largest_batch_size: int | None
    remedies: Mapping[str, int]
    gpus: tuple[GPUFit, ...]
    notes: tuple[str, ...]
    how: str
    seconds: float
    reason: str
    trace: Trace = field(repr=False)

    def __str__(self) -> str:
        process = self.process_bytes
        lines = [
            f"batch size {self.batch_size}: allocated {format_bytes(self.allocated_peak_bytes)}, "
            f"reserved {format_bytes(self.reserved_peak_bytes)}, process "
            f"{format_bytes(process['low'])} to {format_bytes(process['high'])}",
            self.reason,
            "at the peak: "
            + ", ".join(f"{kind} {format_bytes(size)}" for kind, size in self.breakdown.items())
            + f"; cuBLAS workspaces {format_bytes(self.workspace_bytes)}",
        ]
        if self.activations:
            largest = list(self.activations.items())[:_MODULES_SHOWN]
            parts = (f"{name or 'outside modules'} {format_bytes(n)}" for name, n in largest)
            rest = len(self.activations) - len(largest)
            more = f", and {rest} more" if rest else ""
            lines.append(f"activations by module: {', '.join(parts)}{more}")
        if self.remedies:
            saved = (f"{name} saves {format_bytes(n)}" for name, n in self.remedies.items())
            lines.append("what would help: " + ", ".join(saved))
        lines += [f"note: {note}" for note in self.notes]
        for fit in self.gpus:
            size = "nothing fits" if fit.largest_batch_size is None else fit.largest_batch_size
            mark = "" if fit.is_verified else "  (unverified)"
            lines.append(f"{fit.gpu:28} {format_bytes(fit.usable_bytes):>9}  {size}{mark}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `rightbatch predict --json`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del fields["trace"]
        return fields | {"gpus": [asdict(fit) for fit in self.gpus]}

    def plot(self) -> Any:
        """Memory over the step, by kind: a plotly figure, with the peak and the limit marked.

        Raises:
            MissingExtraError: without plotly (the `study` extra).
        """
        from rightbatch._memory.plot import plot_trace

        return plot_trace(self.trace, self.limit_bytes, self.batch_size)


def predict(
    workload: object,
    *,
    batch: int,
    gpu: str | None = None,
    memory: int | str | None = None,
    processes: int = 1,
    inference: bool = False,
    remedies: bool = True,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Prediction:
    """Predict the memory of a training step of `batch` examples on a GPU that need not be here.

    `gpu` is a name ("RTX 4090"), or `"all"` for a table; `memory` stands for a GPU of that size.
    With `processes` above 1, what DDP and NCCL add on each GPU is added.

    Raises:
        UsageError: for an unknown GPU (the nearest are listed), or a workload that is not followed.
        NothingFitsError: if a GPU or memory was given and not even one example fits into it.
        WorkloadError: if the workload fails for a reason of its own.
    """
    if batch < 1:
        raise UsageError(f"batch is at least 1, not {batch}")
    if gpu is not None and memory is not None:
        raise UsageError("give a GPU or a memory, not both")
    chosen = find_gpu(gpu) if gpu is not None and gpu != "all" else None
    limit = chosen.usable_bytes if chosen else None if memory is None else parse_bytes(memory)
    started = time.perf_counter()
    factory = resolve(workload, **options)
    header = header_for(factory, device="cpu", margin=0.0, seed=seed, inference=inference)
    capability = chosen.capability if chosen else DEFAULT_CAPABILITY
    with Live("predict", enabled=progress) as live, ProbeProcess(header, 1) as process:
        live.show("following a step")
        step = FollowedStep(process, processes=processes, inference=inference)
        trace = step.at(batch, capability)
        simulated = step.simulated(batch, capability)
        assert simulated is not None  # without a limit there is room
        beside = step.outside(trace, capability)
        largest = None
        if limit is not None:
            live.show("looking for the largest batch")
            largest = step.largest(limit, capability)
        saved: dict[str, int] = {}
        if remedies and not inference:
            live.show("following what would help")
            saved = step.saved(batch, capability, _VARIANTS)
        fits: tuple[GPUFit, ...] = ()
        if gpu == "all":
            fits = tuple(_fits(step, one, live) for one in catalogue())
    notes = (*step.notes, *beside.notes)
    if chosen is not None and not chosen.is_verified:
        notes = (*notes, f"the figures of {chosen.name} are unverified")
    reserved = simulated.reserved_bytes
    prediction = Prediction(
        batch_size=batch,
        gpu=chosen.name if chosen else None,
        limit_bytes=limit,
        allocated_peak_bytes=simulated.allocated_bytes,
        allocated_band=_band(simulated.allocated_bytes),
        reserved_peak_bytes=reserved,
        reserved_band=_band(reserved, beside.convolutions[1]),
        process_bytes={"low": reserved + beside.low, "high": reserved + beside.high},
        breakdown=trace.breakdown(),
        activations=trace.activations(),
        workspace_bytes=len(trace.gemms) * beside.cublas,
        largest_batch_size=largest,
        remedies=dict(sorted(saved.items(), key=lambda item: -item[1])),
        gpus=fits,
        notes=notes,
        how=step.how,
        seconds=time.perf_counter() - started,
        reason=_reason(limit, chosen, largest, step, beside),
        trace=trace,
    )
    if limit is not None and largest is None:
        raise NothingFitsError(
            f"nothing fits: {prediction.reason}",
            error_type="OutOfMemory",
            error_message="the simulated allocator ran out of memory",
            measured=prediction.to_dict(),
        )
    return prediction


def replay(path: str | Path) -> ReplayResult:
    """Run a recorded allocator trace through the simulated allocator, and compare.

    Raises:
        UsageError: if the file is no recording.
    """
    return replay_recording(read_recording(Path(path)))


def _fits(step: FollowedStep, gpu: GPU, live: Live) -> GPUFit:
    live.show(f"looking for the largest batch on {gpu.name}")
    largest = step.largest(gpu.usable_bytes, gpu.capability)
    return GPUFit(gpu.name, gpu.kind, gpu.usable_bytes, largest, gpu.is_verified)


def _band(value: int, more: int = 0) -> dict[str, int]:
    return {"low": int(BAND[0] * value), "high": int(BAND[1] * value) + more}


def _reason(
    limit: int | None, gpu: GPU | None, largest: int | None, step: FollowedStep, beside: Outside
) -> str:
    tensors = "tensors without memory" if step.how == "fake" else "real tensors at small sizes"
    how = f"followed with {tensors}, allocated by the caching allocator's own rules"
    if limit is None:
        return f"{how}; name a GPU (--gpu) or a memory for the largest batch"
    place = f"{gpu}" if gpu is not None else format_bytes(limit)
    keep = f"{format_bytes(beside.high)} of it kept for what lies outside the allocator"
    if largest is None:
        return f"not even one example fits into {place}, {keep}; {how}"
    bound = ", which is all there are" if largest == step.examples else ""
    return f"up to {largest} examples{bound} fit into {place}, {keep}; {how}"
