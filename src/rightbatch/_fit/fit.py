"""`fit`: the largest batch size that fits on this device, as measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._fit import search as _search
from rightbatch._fit.options import FitOptions
from rightbatch._fit.probe import Probe, ProbeRequest
from rightbatch._fit.result import FitResult
from rightbatch._fit.source import (
    Prober,
    Source,
    TrialSource,
    WorkerSource,
    check_batch_is_used,
    seen_trial,
)
from rightbatch._progress import Live
from rightbatch._training.protocol import Ability, Training, require
from rightbatch._training.resolve import resolve
from rightbatch._units import format_bytes
from rightbatch._worker import BuildError, Failure, Header, Ready, header_for
from rightbatch._workload.sizes import Sizes
from rightbatch._workload.verb import takes

_UNBOUNDED = 2**20
"""The largest size tried if the data has no length and no `max_batch` was given."""


@takes(FitOptions)
def fit(workload: object, options: FitOptions, **spec: Any) -> FitResult:
    """Find the largest batch size that survives full training steps and one evaluation.

    `workload` is a factory, `"file.py:function"`, or a spec that an integration knows, with the
    integration's own keywords (`data=`, `imgsz=`). `memory` (`"2GiB"`, or bytes) limits the device,
    `margin` is the share of the limit to leave free, `max_batch` ends the search early. With
    `inference` each batch runs forward only, without gradients. Every size runs in a separate
    process; the calling process is not changed.

    Raises:
        NothingFitsError: if not even the smallest batch fits.
        WorkloadError: if the workload failed with an error other than out-of-memory.
        UsageError: for an option that cannot be used.
    """
    training = resolve(workload, **spec)
    if Ability.TRIAL in training.abilities:
        return _fit_by_trials(training, options)
    require(training, Ability.EVALUATE if options.inference else Ability.STEP, "fit")
    header = header_for(
        training,
        device=options.device,
        margin=options.margin,
        seed=options.seed,
        inference=options.inference,
    )
    limit = options.memory_bytes
    with Live("fit", enabled=options.progress) as live:
        return largest_batch(
            header,
            limit,
            max_batch=options.max_batch,
            multiple=options.multiple,
            show=live.show,
        )


def _fit_by_trials(training: Training, options: FitOptions) -> FitResult:
    """Run `fit` on a training that runs as a process of its own, once for every size."""
    if options.inference:
        raise UsageError("fit of a command measures what the command does; leave inference out")
    check_device(options.device)
    source = TrialSource(training, options.margin)
    with Live("fit", enabled=options.progress) as live:
        return largest_by_trials(
            source,
            options.memory_bytes,
            max_batch=options.max_batch,
            multiple=options.multiple,
            show=live.show,
        )


def check_device(device: str | None) -> None:
    """Check that no device is asked for, where a command is the training.

    Raises:
        UsageError: if one is.
    """
    if device is not None:
        raise UsageError("a command chooses its own device; pass it among its arguments")


def largest_by_trials(
    source: TrialSource,
    limit: int | None,
    *,
    max_batch: int | None,
    show: Callable[[str], object],
    useful: Callable[[int], int] = lambda examples: examples,
    multiple: int = 1,
) -> FitResult:
    """Run `fit` with trials, as `largest_batch` does; the source keeps them.

    Raises:
        NothingFitsError, WorkloadError, UsageError: as `fit` does.
    """
    found = _Search(source, limit, max_batch, useful, show, multiple).run()
    check_batch_is_used(source.trials)
    trial = seen_trial(source.trials, found.batch_size)
    return replace(
        found,
        batch_size=trial.examples_per_step or found.batch_size,
        argument=found.batch_size,
        steps=len(trial.charges),
        examples=trial.examples,
        notes=(
            *found.notes,
            *dict.fromkeys(note for each in source.trials for note in each.notes),
        ),
    )


def largest_batch(
    header: Header,
    limit: int | None,
    *,
    max_batch: int | None,
    show: Callable[[str], object],
    useful: Callable[[int], int] = lambda examples: examples,
    multiple: int = 1,
) -> FitResult:
    """Run `fit` on the training in a header; `useful` maps an epoch's examples to the largest size.

    `limit` is in bytes; `show` is called with lines of progress.

    Raises:
        NothingFitsError, WorkloadError, UsageError: as `fit` does.
    """
    search = _Search(WorkerSource(header), limit, max_batch, useful, show, multiple)
    try:
        return search.run()
    finally:
        search.stop()


class _Search:
    """Runs what `_search.decide` returns, with at most one active process and one spare."""

    def __init__(
        self,
        source: Source,
        limit: int | None,
        max_batch: int | None,
        useful: Callable[[int], int],
        show: Callable[[str], object],
        multiple: int = 1,
    ) -> None:
        self._source = source
        self._multiple = multiple
        self._asked_limit = limit
        self._max_batch, self._useful = max_batch, useful
        self._show = show
        self._started_at = time.perf_counter()
        self._processes: list[Prober] = []
        self._probes: list[Probe] = []
        self._ready: Ready | None = None
        self._predicted: int | None = None

    def run(self) -> FitResult:
        self._show("starting the first probe")
        process = self._start(exact=True)
        while True:
            if self._ready is None:
                self._probe(process, _search.first(self._multiple))
                self._predicted = self._prediction()
                continue
            question = self._question()
            if question.largest < question.multiple:
                raise UsageError(
                    f"multiple={question.multiple} is larger than an epoch, which has "
                    f"{question.largest} examples, so that no batch size can be tried; give a "
                    f"multiple of at most {question.largest}"
                )
            decision = _search.decide(self._probes, question)
            if isinstance(decision, _search.Found):
                return self._verdict(decision)
            if decision.fresh:
                process.stop()
                process = self._spare(process) or self._start(exact=False)
            elif decision.exact and self._will_need_more(decision.batch_size):
                if len(self._processes) == 1:
                    self._start(exact=False)  # it imports while the small probes run
            self._probe(process, decision)

    def stop(self) -> None:
        for process in self._processes:
            process.stop()

    def _start(self, *, exact: bool) -> Prober:
        process = self._source.start(len(self._processes) + 1, exact=exact)
        self._processes.append(process)
        return process

    def _spare(self, current: Prober) -> Prober | None:
        last = self._processes[-1]
        return last if last is not current else None

    def _will_need_more(self, size: int) -> bool:
        """Whether a second process is certain to be needed: the largest size is not a small one."""
        question = self._question()
        line = _search.fit_line(self._probes)
        if line is None or question.largest <= size:
            return False
        return line.at(question.largest) > question.ceiling_bytes

    def _probe(self, process: Prober, run: _search.Run) -> None:
        survivors = [p.batch_size for p in self._probes if p.is_ok]
        so_far = f" ({max(survivors)} survived)" if survivors else ""
        self._show(f"running batch size {run.batch_size}{so_far}")
        limit = self._ready.limit_bytes if self._ready else self._asked_limit
        try:
            enough = (_search.BRIEF_STEPS, run.enough_bytes)
            request = ProbeRequest(run.batch_size, run.steps, limit, run.most_steps, enough)
            probe = process.run(request)
        except BuildError as error:
            self._ready = self._ready or error.ready
            raise self._not_built(error) from None
        self._ready = self._ready or process.ready
        if self._ready and process.ready and process.ready.examples is not None:
            # A command shows only at a larger size where its data set, or itself, ends it.
            self._ready = replace(self._ready, examples=process.ready.examples)
        crashed = probe.failure is not None and probe.failure.type == "ProcessDied"
        if crashed and any(p.is_ok and p.batch_size < probe.batch_size for p in self._probes):
            # Libraries that do not check what malloc returns crash where memory runs out.
            probe = replace(probe, outcome="killed")
        self._probes.append(probe)

    def _prediction(self) -> int | None:
        """Return the largest batch size by `predict`, for a CUDA device; None if it has none."""
        if self._ready is None or self._ready.capability is None:
            return None
        self._show("predicting the largest batch")
        return self._source.predicted(self._ready)

    def _question(self) -> _search.Question:
        assert self._ready is not None
        examples = self._ready.examples or _UNBOUNDED
        return _search.Question(
            ceiling_bytes=self._ready.ceiling_bytes,
            largest=min(examples, self._max_batch or self._useful(examples)),
            slack=self._ready.device == "cpu" and sys.platform.startswith("linux"),
            predicted=self._predicted,
            multiple=self._multiple,
        )

    def _verdict(self, found: _search.Found) -> FitResult:
        ready = self._ready
        assert ready is not None
        if found.failed is not None:
            raise self._failed(found.failed.batch_size, found.failed.failure)
        if found.batch_size is None or found.smallest is None:
            raise self._nothing_fits()
        probe = next(p for p in reversed(self._probes) if p.batch_size == found.batch_size)
        return FitResult(
            batch_size=found.batch_size,
            smallest_batch_size=found.smallest,
            peak_bytes=probe.peak_bytes or 0,
            limit_bytes=ready.limit_bytes,
            limit_enforced=ready.enforced,
            evaluation_batch_size=probe.evaluation_batch_size,
            examples=ready.examples,
            device=ready.device,
            margin=self._source.margin,
            seconds=time.perf_counter() - self._started_at,
            reason=self._reason(probe),
            probes=tuple(self._probes),
            notes=self._notes(),
            sizes=_search.taken_by(self._probes, self._question()),
        )

    def _notes(self) -> tuple[str, ...]:
        """Return what the answer rests on beside its probes."""
        notes = list(self._ready.notes if self._ready else ())
        sizes = _search.taken_by(self._probes, self._question())
        rejected = [p for p in self._probes if p.outcome == "failed"]
        if rejected and sizes.describe() != Sizes(self._multiple).describe():
            sizes_rejected = ", ".join(str(p.batch_size) for p in rejected)
            notes.append(
                f"sizes taken: {sizes.describe()}; the workload failed at {sizes_rejected} with "
                f"{_error_of(rejected[-1])}"
            )
        return tuple(notes)

    def _reason(self, probe: Probe) -> str:
        assert self._ready is not None
        question = self._question()
        charged = probe.charged_bytes or 0
        text = f"measured: {format_bytes(charged)} of {self._describe_limit()}"
        if probe.growing_bytes > 0.002 * charged:
            text += f", still growing by {format_bytes(probe.growing_bytes)}"
        largest = _search.taken_by(self._probes, question).at_most(question.largest)
        if probe.batch_size == largest:
            bound = "the data set's size"
            if largest < question.largest:
                bound = f"the largest size up to {question.largest} that the workload takes"
            elif question.largest == self._max_batch:
                bound = "max_batch"
            elif question.largest != self._ready.examples:
                bound = "the largest that leaves enough updates"
            return f"{text}; it is {bound}, so nothing larger was tried"
        return f"{text}; {self._what_is_above(probe, question)}"

    def _what_is_above(self, probe: Probe, question: _search.Question) -> str:
        """Describe the next larger size, and whether the search ended before its tolerance."""
        above = [
            p
            for p in self._probes
            if p.batch_size > probe.batch_size and not _search.fits(p, question)
        ]
        ended = f"the search ended after {max(p.process for p in self._probes)} processes"
        if not above:
            room = question.ceiling_bytes - probe.claimed_bytes
            if room < 2 * _search.TOLERANCE * question.ceiling_bytes:
                return f"the remaining {format_bytes(room)} would hold less than 3% more"
            return f"{format_bytes(room)} remain, but no larger size was tried: {ended}"
        first = min(above, key=lambda p: p.batch_size)
        if first.is_ok:
            text = f"{first.batch_size} needs {format_bytes(first.claimed_bytes)}"
            text += " with its expected growth" if first.growing_bytes else ""
        elif first.outcome == "failed":
            text = f"{first.batch_size} failed with {_error_of(first)}"
        else:
            text = f"{first.batch_size} ran out of memory"
        gap = first.batch_size - 1 - probe.batch_size
        if gap > max(2 * _search.TOLERANCE * probe.batch_size, 1):
            text += f"; no size in between was tried: {ended}"
        return text

    def _describe_limit(self) -> str:
        ready = self._ready
        assert ready is not None
        limit = format_bytes(ready.limit_bytes)
        if ready.ceiling_bytes < ready.limit_bytes:
            margin = f"{1 - ready.ceiling_bytes / ready.limit_bytes:.1%} margin"
            limit = f"{format_bytes(ready.ceiling_bytes)} (the {limit} limit less the {margin})"
        if self._asked_limit is not None and ready.limit_bytes < self._asked_limit:
            asked = format_bytes(self._asked_limit)
            limit += f" (a limit of {asked} was given, which is more than {ready.device} has)"
        return limit

    def _measured(self) -> dict[str, Any]:
        """Return the fields of a result that are known without an answer."""
        ready = self._ready
        return {
            "smallest_batch_size": None,
            "peak_bytes": None,
            "limit_bytes": ready.limit_bytes if ready else self._asked_limit,
            "limit_enforced": ready.enforced if ready else False,
            "evaluation_batch_size": None,
            "examples": ready.examples if ready else None,
            "device": ready.device if ready else self._source.device,
            "seconds": time.perf_counter() - self._started_at,
            "probes": [probe.to_dict() for probe in self._probes],
        }

    def _not_built(self, error: BuildError) -> Exception:
        if error.outcome == "failed":
            return self._failed(None, error.failure)
        return self._nothing_fits(error.failure)

    def _failed(self, batch_size: int | None, failure: Failure | None) -> Exception:
        failure = failure or Failure("Error", "no message")
        where = "while it was built" if batch_size is None else f"at batch size {batch_size}"
        what = f"the workload failed {where}, with an error other than out-of-memory"
        if len({p.batch_size for p in self._probes}) > 2:
            tried = ", ".join(str(p.batch_size) for p in self._probes)
            what += f", and at other sizes ({tried}; multiple= tries only multiples of a number)"
        return failure.as_error(what, self._measured())

    def _nothing_fits(self, failure: Failure | None = None) -> Exception:
        if failure is None:
            failure = next((p.failure for p in reversed(self._probes) if p.failure), None)
        measured = self._measured()
        self.stop()
        self._show("nothing fits; measuring what one example needs")
        need = self._source.needed(self._ready)
        return NothingFitsError(
            f"nothing fits: {need.describe()}; available: {self._describe_limit()}. "
            + need.describe_remedies(),
            error_type=failure.type if failure else "OutOfMemory",
            error_message=failure.message if failure else "the memory limit was exceeded",
            measured=measured
            | {"needed_bytes": need.bytes, "needed_how": need.how, "remedies": need.remedies},
        )


def _error_of(probe: Probe) -> str:
    """Return the first line of the error that ended a probe."""
    failure = probe.failure or Failure("Error", "no message")
    lines = failure.message.splitlines()
    return f"{failure.type}: {lines[0][:160]}" if lines else failure.type
