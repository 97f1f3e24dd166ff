"""`train`: a whole training at a batch size, found and chosen first if that is asked for."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch._device import is_out_of_memory
from rightbatch._errors import NothingFitsError, RightbatchError, UsageError, WorkloadError
from rightbatch._train.options import TrainOptions
from rightbatch._tune.plan import Plan
from rightbatch._tune.tune import tune
from rightbatch._units import format_seconds
from rightbatch._workload.factory import resolve
from rightbatch._workload.verb import takes

if TYPE_CHECKING:
    from rightbatch._train.growth import Growth
    from rightbatch._training.checkpoint import Checkpoints
    from rightbatch._workload.workload import StepSeconds, Workload


@dataclass(frozen=True)
class TrainResult:
    """A finished training. `steps` are updates, `examples` those that all of them saw.

    `micro_batch_size` is the one in use at the end, `out_of_memory_events` how often memory ran out
    and was survived. `plan` is that of `tune` where the size was chosen, whose learning rate a
    workload was trained with; `reason` says why this one. With `adapt` the size is that of the end.
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
        """The JSON document of `rightbatch train --json`."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return document | {"plan": self.plan.to_dict() if self.plan else None}


@takes(TrainOptions)
def train(workload: object, options: TrainOptions, **spec: Any) -> TrainResult:
    """Train a workload, or a model of an integration through that framework's own trainer.

    `batch` is the batch size, or `"auto"`: what `tune` answers within `budget`, with its learning
    rate for a workload whose own was chosen for `base_batch` (a framework keeps to its own rule).
    With `adapt` the size then grows with the noise scale, and the learning rate with it. A
    workload's batches are cut into parts of `micro_batch` examples, which shrink where memory runs
    out; the batch size stays. Everything is written into the folder `out`, from which `resume` goes
    on at the next example. Started by torchrun, the processes train together.

    `checkpoint_seconds` lie between two checkpoints. `settings` go to a framework's training as
    they are; any other keyword goes to its spec (`data=`, `imgsz=`).

    Raises:
        UsageError: for an option that cannot be used, or an `out` that holds another training.
        NothingFitsError: if not even one example fits.
        WorkloadError: if the workload failed with an error other than out-of-memory.
    """
    factory = resolve(workload, **spec)
    batch, epochs, resume, adapt = options.batch_size, options.epochs, options.resume, options.adapt
    if adapt and (batch != "auto" or hasattr(factory, "train")):
        raise UsageError(
            "adapt grows a size that tune has chosen: it takes batch='auto' and a Workload"
        )

    def choice(processes: int = 1) -> _Choice:
        if isinstance(batch, int):
            return _Choice(batch, f"{batch} was asked for", None)
        plan = tune(
            factory,
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

    out = Path(options.out).expanduser()
    settings = dict(options.settings or {})
    if hasattr(factory, "train"):
        if resume:
            raise UsageError("resume is for a Workload; a framework's trainer has its own")
        return _by_framework(factory, choice(), epochs, out, options.device, options.seed, settings)
    if settings:
        raise UsageError(f"a Workload takes no settings, got {', '.join(sorted(settings))}")

    from rightbatch._training.checkpoint import Checkpoints
    from rightbatch._training.distributed import Processes, opened
    from rightbatch._training.loop import Loop, built
    from rightbatch._training.scaling import scale_optimizer

    checkpoints = Checkpoints(out, options.checkpoint_seconds)
    if checkpoints.exist and not resume:
        raise UsageError(
            f"{out} holds a training: --resume (resume=True) goes on with it, or take another --out"
        )

    def run(processes: Processes) -> TrainResult:
        with built(factory, options.seed, processes) as workload:
            if resume and batch == "auto":
                began = checkpoints.asked()["batch_size"]
                chosen = _Choice(began, f"the training began with {began}", None)
            else:
                world = processes.world_size
                chosen = processes.from_first(choice(world) if processes.is_first else None)
            plan, parts = chosen.plan, options.micro_batch_size
            if plan is not None:
                parts = plan.micro_batch_size if parts == "auto" else parts
            growth = None
            if adapt:
                most = None if options.micro_batch_size == "auto" else options.micro_batch_size
                growth = _growth(workload, plan, checkpoints if resume else None, epochs, most)
            loop = Loop(
                workload,
                batch_size=chosen.batch_size,
                micro_batch_size=parts,
                epochs=epochs,
                out=out,
                checkpoints=checkpoints,
                processes=processes,
                growth=growth,
                memory=options.memory,
                margin=options.margin,
                seed=options.seed,
                progress=options.progress and processes.is_first,
            )
            if plan is not None:  # after the schedule is made, which may set rates of its own
                factor, rate = plan.batch_size / plan.base_batch, plan.learning_rate_factor
                scale_optimizer(workload.optimizer, factor, rate, loop.scheduler)
            if resume:
                loop.resume()
            standing = loop.run()
        return TrainResult(
            batch_size=standing.batch_size,
            micro_batch_size=loop.step.micro_batch_size or chosen.batch_size,
            steps=standing.steps,
            examples=standing.examples,
            seconds=standing.seconds,
            out_of_memory_events=standing.out_of_memory_events,
            metrics=standing.metrics,
            out=str(out),
            reason=chosen.reason,
            plan=chosen.plan,
        )

    with _named(), opened(options.device) as processes:
        if adapt and processes.world_size > 1:
            raise UsageError("adapt measures in one process; torchrun trains at one size so far")
        return run(processes)


def _growth(
    workload: Workload,
    plan: Plan | None,
    checkpoints: Checkpoints | None,
    epochs: int,
    most_at_once: int | None,
) -> Growth:
    """With the step times of the plan, or of the one that a training was begun with."""
    from rightbatch._train.growth import Growth, samples_of

    if checkpoints is not None:
        state = checkpoints.read()["growth"]
        if state is None:
            raise UsageError("the training in --out was begun without --adapt")
        samples: Mapping[int, Sequence[StepSeconds]] = samples_of(state)
    else:
        assert plan is not None
        samples = plan.samples
    return Growth(
        samples,
        workers=workload.workers,
        examples=len(workload.data),  # type: ignore[arg-type]
        epochs=epochs,
        betas=workload.optimizer.defaults.get("betas"),
        most_at_once=most_at_once,
    )


@contextmanager
def _named() -> Iterator[None]:
    """What the workload itself raises, as the error that says so."""
    try:
        yield
    except RightbatchError:
        raise
    except Exception as error:
        what: dict[str, Any] = {
            "error_type": type(error).__name__,
            "error_message": str(error),
        }
        said = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            raise NothingFitsError(f"memory ran out outside of a step: {said}", **what) from error
        trace = "".join(traceback.format_exception(error))
        reason = f"the workload fails, and not for want of memory: {said}"
        raise WorkloadError(reason, traceback=trace, **what) from error


@dataclass(frozen=True)
class _Choice:
    batch_size: int
    reason: str
    plan: Plan | None


def _by_framework(
    factory: Any,
    chosen: _Choice,
    epochs: int,
    out: Path,
    device: str | None,
    seed: int,
    settings: dict[str, Any],
) -> TrainResult:
    size = chosen.batch_size
    micro = chosen.plan.micro_batch_size if chosen.plan else size
    about: dict[str, Any] = {"batch": size, "micro_batch": micro, "epochs": epochs, "out": out}
    done = factory.train(**about, device=device, seed=seed, **settings)
    return TrainResult(
        batch_size=size,
        micro_batch_size=micro,
        steps=ceil(done.examples / size) * done.epochs,
        examples=done.examples * done.epochs,
        seconds=done.seconds,
        out_of_memory_events=done.out_of_memory_events,
        metrics=done.metrics,
        out=str(done.out),
        reason=chosen.reason,
        plan=chosen.plan,
    )
