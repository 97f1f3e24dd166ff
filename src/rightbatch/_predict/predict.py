"""`predict`: peak memory and the largest batch on a GPU you don't have."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rightbatch._errors import NothingFitsError
from rightbatch._predict.band import ALLOCATED, RESERVED, within
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.followed_step import FollowedStep
from rightbatch._predict.gpus import GPU, catalogue, find_gpu
from rightbatch._predict.options import PredictOptions
from rightbatch._predict.overhead import Overhead
from rightbatch._predict.remedies import IN_STEP
from rightbatch._predict.replay import ReplayResult, read_recording
from rightbatch._predict.replay import replay as replay_recording
from rightbatch._predict.solve import solve, with_value
from rightbatch._predict.trace import Trace
from rightbatch._progress import Live
from rightbatch._training.protocol import Ability, require
from rightbatch._training.resolve import resolve
from rightbatch._units import format_bytes
from rightbatch._worker import header_for
from rightbatch._workload.notebook import ShownInNotebooks
from rightbatch._workload.verb import takes

DEFAULT_CAPABILITY = 8.0
_MODULES_SHOWN = 5


@dataclass(frozen=True)
class GPUFit:
    """The largest batch on one GPU; None if not even one example fits."""

    gpu: str
    kind: str
    usable_bytes: int
    largest_batch_size: int | None
    is_verified: bool


@dataclass(frozen=True)
class Prediction(ShownInNotebooks):
    """The predicted memory of a training step at `batch_size`, in bytes; nothing ran on the GPU.

    With several `processes`, sharded as `sharding` says, it is that of one of them.

    `allocated_peak_bytes` is the memory of the tensors, `reserved_peak_bytes` that of the caching
    allocator, `process_bytes` that of the process in the driver's account, with context and
    workspaces; `allocated_band` and `reserved_band` are bounds of the first two. `breakdown` is the
    tensors' memory at the peak by kind, `activations` by module. `remedies` are the bytes that each
    way to save memory saves at this batch size. `largest_batch_size` is None without a GPU or
    memory limit, or if nothing fits. `solved` is the largest value at which the batch fits, by the
    parameter's name, if one was asked for. `how` says whether fake or real tensors were followed,
    `trace` has all allocations.
    """

    batch_size: int
    gpu: str | None
    processes: int
    sharding: str | None
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
    solved: Mapping[str, int]
    remedies: Mapping[str, int]
    gpus: tuple[GPUFit, ...]
    notes: tuple[str, ...]
    how: str
    seconds: float
    reason: str
    trace: Trace = field(repr=False)

    def __str__(self) -> str:
        process = self.process_bytes
        step = f"batch size {self.batch_size}"
        step += f" on each of {self.processes} GPUs" if self.processes > 1 else ""
        step += f", sharded by {self.sharding}" if self.sharding is not None else ""
        lines = [
            f"{step}: allocated {format_bytes(self.allocated_peak_bytes)}, "
            f"reserved {format_bytes(self.reserved_peak_bytes)}, process "
            f"{format_bytes(process['low'])} to {format_bytes(process['high'])}",
            *(f"the largest {name} that fits is {value}" for name, value in self.solved.items()),
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
            lines.append("ways to save memory: " + ", ".join(saved))
        lines += [f"note: {note}" for note in self.notes]
        for fit in self.gpus:
            size = "nothing fits" if fit.largest_batch_size is None else fit.largest_batch_size
            mark = "" if fit.is_verified else "  (unverified)"
            lines.append(f"{fit.gpu:28} {format_bytes(fit.usable_bytes):>9}  {size}{mark}")
        if self.gpus:
            smallest = self.smallest_gpu or "none"
            lines.append(f"the smallest that holds a batch of {self.batch_size}: {smallest}")
        return "\n".join(lines)

    def _table(self) -> Sequence[Sequence[object]]:
        parts = [(kind, format_bytes(size)) for kind, size in self.breakdown.items()]
        return [("at the peak", "bytes"), *parts]

    @property
    def smallest_gpu(self) -> str | None:
        """The name of the smallest of `gpus` that holds the batch; None if none does."""
        holding = [g for g in self.gpus if (g.largest_batch_size or 0) >= self.batch_size]
        return min(holding, key=lambda g: g.usable_bytes).gpu if holding else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch predict --json`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del fields["trace"]
        smallest = {"smallest_gpu": self.smallest_gpu}
        return fields | smallest | {"gpus": [asdict(fit) for fit in self.gpus]}

    def plot(self) -> Any:
        """Return a plotly figure of the memory over the step by kind, with the peak and the limit.

        Raises:
            MissingExtraError: if plotly (the `study` extra) is not installed.
        """
        from rightbatch._predict.plot import plot_trace

        return plot_trace(self.trace, self.limit_bytes, self.batch_size)


@takes(PredictOptions)
def predict(workload: object, options: PredictOptions, **spec: Any) -> Prediction:
    """Predict the memory of a training step of `batch` examples on a GPU you don't have.

    `gpu` is a name ("RTX 4090"), or `"all"` for a table; `memory` describes a GPU by its size only.
    With more than one of `processes`, `batch` is that of each of them, and the memory of DDP and
    NCCL is added; `sharding` shards over them instead: `zero1` the optimizer's state, `zero2` the
    gradients as well, `zero3` (FSDP2) the parameters as well. `solve` names an argument of the
    factory, such as `length`: the step is predicted at the largest multiple of 32 at which the
    batch fits, within 2%. With `inference` the batch only runs forward; with `remedies` the bytes
    that each way to save memory would save are predicted as well.

    Raises:
        UsageError: if the GPU is unknown (the nearest are listed), or the workload not supported.
        NothingFitsError: if a GPU or memory was given and not even one example fits into it.
        WorkloadError: if the workload failed with an error other than out-of-memory.
    """
    prediction = prediction_of(workload, options, spec)
    if prediction.limit_bytes is not None and prediction.largest_batch_size is None:
        raise NothingFitsError(
            f"nothing fits: {prediction.reason}",
            error_type="OutOfMemory",
            error_message="the simulated allocator ran out of memory",
            measured=prediction.to_dict(),
        )
    return prediction


def prediction_of(workload: object, options: PredictOptions, spec: dict[str, Any]) -> Prediction:
    """Do as `predict`, also where nothing fits."""
    batch, gpu, inference = options.batch, options.gpu, options.inference
    chosen = find_gpu(gpu) if gpu is not None and gpu != "all" else None
    limit = chosen.usable_bytes if chosen else options.memory_bytes
    started = time.perf_counter()
    capability = chosen.capability if chosen else DEFAULT_CAPABILITY
    training = resolve(workload, **spec)
    require(training, Ability.FOLLOW, "predict")
    solved: dict[str, int] = {}
    if options.solve is not None:
        assert limit is not None  # the options say so
        solved = {options.solve: solve(workload, options, spec, limit, capability)}
        training = with_value(workload, options.solve, solved[options.solve], spec)
    header = header_for(training, device="cpu", margin=0.0, seed=options.seed, inference=inference)
    with Live("predict", enabled=options.progress) as live, FollowProcess(header) as process:
        live.stage("following a step")
        step = FollowedStep(
            process,
            processes=options.processes,
            sharding=options.sharding,
            inference=inference,
        )
        trace = step.at(batch, capability)
        simulated = step.simulated(batch, capability)
        assert simulated is not None  # without a limit it cannot run out
        overhead = step.overhead(trace, capability)
        largest = None
        if limit is not None:
            live.stage("searching for the largest batch")
            largest = step.largest(limit, capability)
        saved: dict[str, int] = {}
        if options.remedies and not inference:
            live.stage("following ways to save memory")
            saved = step.bytes_saved(batch, capability, IN_STEP)
        fits: tuple[GPUFit, ...] = ()
        if gpu == "all":
            fits = tuple(_fits(step, one, live) for one in catalogue())
    notes = (*step.notes, *overhead.notes)
    limited = step.exceeded_limit(batch, capability)
    if limited is not None and not any(note.startswith(limited) for note in notes):
        notes = (f"{limited}: a batch of {batch} fails with any memory", *notes)
    if chosen is not None and not chosen.is_verified:
        notes = (*notes, f"the figures of {chosen.name} are unverified")
    reserved = simulated.reserved_bytes
    band = within(reserved, RESERVED)
    return Prediction(
        batch_size=batch,
        gpu=chosen.name if chosen else None,
        processes=options.processes,
        sharding=options.sharding,
        limit_bytes=limit,
        allocated_peak_bytes=simulated.allocated_bytes,
        allocated_band=within(simulated.allocated_bytes, ALLOCATED),
        reserved_peak_bytes=reserved,
        reserved_band=band,
        process_bytes={
            "low": band["low"] + overhead.low,
            # Workspaces and fragmentation are not both at their worst: they share what is free.
            "high": max(band["high"] + overhead.kept, reserved + overhead.high),
        },
        breakdown=trace.breakdown(),
        activations=trace.activations(),
        workspace_bytes=len(trace.gemms) * overhead.cublas,
        largest_batch_size=largest,
        solved=solved,
        remedies=dict(sorted(saved.items(), key=lambda item: -item[1])),
        gpus=fits,
        notes=notes,
        how=step.how,
        seconds=time.perf_counter() - started,
        reason=_reason(limit, chosen, largest, step, overhead),
        trace=trace,
    )


def replay(path: str | Path) -> ReplayResult:
    """Run a recorded allocator trace through the simulated allocator, and compare.

    Raises:
        UsageError: if the file is not a recording.
    """
    return replay_recording(read_recording(Path(path)))


def _fits(step: FollowedStep, gpu: GPU, live: Live) -> GPUFit:
    live.show(f"searching for the largest batch on {gpu.name}")
    largest = step.largest(gpu.usable_bytes, gpu.capability)
    return GPUFit(gpu.name, gpu.kind, gpu.usable_bytes, largest, gpu.is_verified)


def _reason(
    limit: int | None, gpu: GPU | None, largest: int | None, step: FollowedStep, overhead: Overhead
) -> str:
    tensors = "tensors without memory" if step.how == "fake" else "real tensors at small sizes"
    how = f"followed with {tensors}, then simulated with the rules of the caching allocator"
    if limit is None:
        return f"{how}; give a GPU (--gpu) or a memory size (--memory) for the largest batch"
    place = f"{gpu}" if gpu is not None else format_bytes(limit)
    outside = f"with {format_bytes(overhead.kept)} kept for memory outside the allocator"
    if largest is None:
        return f"not even one example fits into {place}, {outside}; {how}"
    bound = ", the whole data set," if largest == step.examples else ""
    return f"up to {largest} examples{bound} fit into {place}, {outside}; {how}"
