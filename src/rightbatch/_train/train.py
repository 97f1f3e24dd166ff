"""`train`: a complete training at a batch size that is given, or chosen by `tune`."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from rightbatch._device import is_out_of_memory
from rightbatch._errors import NothingFitsError, RightbatchError, UsageError, WorkloadError
from rightbatch._train.checkpointing import Checkpointing
from rightbatch._train.epochs import EpochEvaluation, ProgressLine
from rightbatch._train.files import TrainingFiles
from rightbatch._train.growth import Growth, samples_of
from rightbatch._train.options import TrainOptions
from rightbatch._training.checkpoint import Checkpoints, make_folder
from rightbatch._training.distributed import opened
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import (
    Ability,
    Betas,
    LoopPlan,
    Observer,
    Training,
    require,
)
from rightbatch._training.resolve import resolve
from rightbatch._tune.plan import Plan
from rightbatch._tune.tune import tune
from rightbatch._units import format_seconds
from rightbatch._workload.notebook import ShownInNotebooks
from rightbatch._workload.verb import takes
from rightbatch._workload.workload import StepSeconds


@dataclass(frozen=True)
class TrainResult(ShownInNotebooks):
    """A finished training of `steps` updates and `examples` examples, in `seconds`.

    `batch_size` and `micro_batch_size` are those at the end. `out_of_memory_events` counts the
    out-of-memory errors that the training survived. `reason` says why the batch size was used;
    `plan` is the result of `tune`, None if it did not run. The files are in the folder `out`.
    """

    batch_size: int
    micro_batch_size: int
    steps: int
    examples: int
    seconds: float
    out_of_memory_events: int
    metrics: Mapping[str, float]
    out: str
    reason: str
    plan: Plan | None

    def __str__(self) -> str:
        return (
            f"batch size {self.batch_size}: {self.steps} updates in "
            f"{format_seconds(self.seconds)}; results in {self.out}\n{self.reason}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch train --json`."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return document | {"plan": self.plan.to_dict() if self.plan else None}


@takes(TrainOptions)
def train(workload: object, options: TrainOptions, **spec: Any) -> TrainResult:
    """Train a workload, or a model of an integration through that framework's own trainer.

    `batch` is the batch size, or `"auto"`: the choice of `tune` within `budget`, with its learning
    rate if the workload's own was chosen for `base_batch` (a framework keeps its own rule). With
    `adapt` the size then grows with the noise scale, and the learning rate with it. A workload's
    batches are run in parts of `micro_batch` examples, which shrink when memory runs out; the batch
    size stays. All files are written into the folder `out`; `resume` continues from it at the next
    example. Processes started by torchrun train together.

    A checkpoint is written every `checkpoint_seconds`. `settings` are passed to a framework's
    trainer; any other keyword goes to its spec (`data=`, `imgsz=`).

    Raises:
        UsageError: for an option that cannot be used, or an `out` that holds another training.
        NothingFitsError: if not even one example fits.
        WorkloadError: if the workload failed with an error other than out-of-memory.
    """
    training = resolve(workload, **spec)
    batch, epochs, resume, adapt = options.batch_size, options.epochs, options.resume, options.adapt
    require(training, Ability.LOOP, "train")
    out, micro_batch = Path(options.out).expanduser(), options.micro_batch_size
    if refused := training.refused_folder(out, resume=resume):
        raise UsageError(refused)
    if resume:
        require(training, Ability.RESUME, "train --resume")
    if options.settings:
        require(training, Ability.SETTINGS, "train with settings")
    if adapt:
        require(training, Ability.GROW, "train --adapt")
        if batch != "auto":
            raise UsageError("adapt needs a size that tune chose: use it with batch='auto'")

    def choose(processes: int) -> _Choice:
        if isinstance(batch, int):
            return _Choice(batch, f"batch size {batch} was given", None)
        plan = tune(
            training,
            budget=options.budget,
            base_batch=options.base_batch,
            epochs=epochs,
            processes=processes,
            memory=options.memory,
            margin=options.margin,
            max_batch=options.max_batch,
            device=options.device,
            seed=options.seed,
            progress=options.progress,
        )
        return _Choice(plan.batch_size, plan.reason, plan)

    with _workload_errors(), opened(options.device) as processes:
        if processes.world_size > 1:
            require(training, Ability.DISTRIBUTE, "train with torchrun")
            if adapt:
                raise UsageError("adapt works in one process only: leave out --adapt, or torchrun")
        checkpoints = None
        if Ability.RESUME in training.abilities:
            if not resume:
                make_folder(out)  # before `tune` takes its time
            checkpoints = Checkpoints(out, options.checkpoint_seconds)
            if checkpoints.exist and not resume:
                raise UsageError(
                    f"{out} holds a training: continue it with --resume (resume=True), or choose "
                    "another --out"
                )
        if resume and batch == "auto":
            assert checkpoints is not None
            began = checkpoints.settings()["batch_size"]
            chosen = _Choice(began, f"the training was started with batch size {began}", None)
        else:
            own = choose(processes.world_size) if processes.is_first else None
            chosen = processes.from_first(own)
        plan = chosen.plan
        parts = plan.micro_batch_size if plan is not None and micro_batch == "auto" else micro_batch
        loop_plan = LoopPlan(
            batch_size=chosen.batch_size,
            micro_batch_size=parts,
            epochs=epochs,
            schedule_by_examples=adapt,
            factors=_factors(training, plan),
            seed=options.seed,
            memory=options.memory,
            margin=options.margin,
            out=out,
            settings=dict(options.settings or {}),
        )
        observers: list[Observer] = [ProgressLine(enabled=options.progress, shows_batch_size=adapt)]
        checkpointing = None
        if checkpoints is not None:  # a framework evaluates and writes files itself
            observers += [EpochEvaluation(), TrainingFiles(out)]
            kept: dict[str, Observer] = {}
            if adapt:
                most = parts if isinstance(parts, int) and micro_batch != "auto" else None
                samples = _samples(plan, checkpoints if resume else None)
                kept["growth"] = Growth(samples, epochs=epochs, most_at_once=most)
            checkpointing = Checkpointing(checkpoints, kept)
            observers += [*kept.values(), checkpointing]
        with training.loop(loop_plan, processes, observers) as loop:
            if resume:
                assert checkpointing is not None
                checkpointing.resume(cast(WorkloadLoop, loop))
            at = loop.run()
            micro = loop.micro_batch_size
    return TrainResult(
        batch_size=at.batch_size,
        micro_batch_size=micro or chosen.batch_size,
        steps=at.steps,
        examples=at.examples,
        seconds=at.seconds,
        out_of_memory_events=at.out_of_memory_events,
        metrics=at.metrics,
        out=str(out),
        reason=chosen.reason,
        plan=plan,
    )


def _factors(
    training: Training, plan: Plan | None
) -> Callable[[Betas], tuple[float, float]] | None:
    """Return the factors on the optimizer's settings; None for a framework, which has a rule."""
    if plan is None or training.base_batch is not None:
        return None
    factors = (plan.batch_size / plan.base_batch, plan.learning_rate_factor)
    return lambda betas: factors


def _samples(
    plan: Plan | None, checkpoints: Checkpoints | None
) -> Mapping[int, Sequence[StepSeconds]]:
    """Return the step times of the plan, or of the training in the checkpoint.

    Raises:
        UsageError: if that training was started without `adapt`.
    """
    if checkpoints is None:
        assert plan is not None
        return plan.samples
    state = checkpoints.read()["observers"].get("growth")
    if state is None:
        raise UsageError("the training in --out was started without --adapt: resume it without")
    try:
        return samples_of(state)
    except (LookupError, TypeError, AttributeError) as error:
        raise checkpoints.mismatch_error(f"its step times cannot be read ({error})") from error


@contextmanager
def _workload_errors() -> Iterator[None]:
    """Raise errors of the workload as `NothingFitsError` or `WorkloadError`."""
    try:
        yield
    except RightbatchError:
        raise
    except Exception as error:
        notes = getattr(error, "__notes__", ())
        what: dict[str, Any] = {
            "error_type": type(error).__name__,
            "error_message": str(error),
        }
        said = " (".join([f"{type(error).__name__}: {error}", *notes]) + ")" * len(notes)
        if is_out_of_memory(error):
            raise NothingFitsError(f"out of memory outside of a step: {said}", **what) from error
        trace = "".join(traceback.format_exception(error))
        reason = f"the workload failed with an error other than out-of-memory: {said}"
        raise WorkloadError(reason, traceback=trace, **what) from error


@dataclass(frozen=True)
class _Choice:
    batch_size: int
    reason: str
    plan: Plan | None
