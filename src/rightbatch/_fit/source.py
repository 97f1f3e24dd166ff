"""Where the probes of a search come from: workers, or runs of the training's own command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rightbatch._errors import UsageError, WorkloadError
from rightbatch._fit.nothing_fits import Needed, what_is_needed
from rightbatch._fit.probe import Probe, ProbeProcess, ProbeRequest
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.followed_step import FollowedStep
from rightbatch._training.protocol import Training
from rightbatch._training.trial import Trial, TrialRequest
from rightbatch._worker import Header, Ready


class Prober(Protocol):
    """Runs sizes one after the other, in one process or as one process each."""

    ready: Ready | None

    def run(self, request: ProbeRequest) -> Probe:
        """Run one size."""

    def stop(self) -> None:
        """End what is running."""


class Source(Protocol):
    """Makes probers, and knows what cannot be probed."""

    @property
    def margin(self) -> float: ...

    @property
    def device(self) -> str | None: ...

    def start(self, number: int, *, exact: bool) -> Prober:
        """Return the `number`th prober of a search."""

    def predicted(self, ready: Ready) -> int | None:
        """Return the largest size by `predict`; None if it has none."""

    def needed(self, ready: Ready | None) -> Needed:
        """Return what one example needs, where nothing fits."""


class WorkerSource:
    """Probes in worker processes, for a training that opens sessions."""

    def __init__(self, header: Header) -> None:
        self._header = header

    @property
    def margin(self) -> float:
        return self._header.margin

    @property
    def device(self) -> str | None:
        return self._header.device

    def start(self, number: int, *, exact: bool) -> Prober:
        return ProbeProcess(self._header, number, exact=exact)

    def predicted(self, ready: Ready) -> int | None:
        if ready.capability is None:
            return None
        header = replace(self._header, device="cpu")
        with FollowProcess(header) as process:
            # The CUDA context was already there when the charge was zero.
            step = FollowedStep(process, inference=header.inference, beside_context=True)
            try:
                return step.largest(ready.ceiling_bytes, ready.capability)
            except (UsageError, WorkloadError):
                return None  # the step cannot be followed: extrapolate from small sizes

    def needed(self, ready: Ready | None) -> Needed:
        return what_is_needed(self._header, ready)


class TrialSource:
    """Probes that are runs of the training's own command; `trials` has all of them, in order."""

    device = None

    def __init__(self, training: Training, margin: float) -> None:
        self._training = training
        self.margin = margin
        self.trials: list[Trial] = []

    def start(self, number: int, *, exact: bool) -> Prober:
        return _TrialProber(self, number, exact)

    def predicted(self, ready: Ready) -> int | None:
        return None

    def needed(self, ready: Ready | None) -> Needed:
        if ready is None or ready.limit_bytes < ready.capacity_bytes:
            trial = self.run(1, TrialRequest(2))
            if trial.outcome == "ok" and trial.charges:
                return Needed(max(trial.charges), "measured")
        return Needed()

    def run(self, argument: int, request: TrialRequest) -> Trial:
        """Run one trial, and keep it."""
        trial = self._training.trial(argument, replace(request, margin=self.margin))
        self.trials.append(trial)
        return trial


class _TrialProber:
    """Runs every size as a command of its own.

    The exact, small measurements of a search count as one process, as in a worker.
    """

    def __init__(self, source: TrialSource, number: int, exact: bool) -> None:
        self._source, self._number, self._exact = source, number, exact
        self.ready: Ready | None = None

    def run(self, request: ProbeRequest) -> Probe:
        # How many steps is fixed before the start, so it is as many as a worker may need to settle.
        steps = max(request.steps, request.most_steps or 0)
        asked = TrialRequest(steps, request.limit, exact=self._exact)
        trial = self._source.run(request.batch_size, asked)
        bounds = {t.argument: t.largest_argument for t in self._source.trials if t.largest_argument}
        # A script that accumulates to a fixed size shows less than its data hold at a small batch.
        examples = bounds[max(bounds)] if bounds else None
        self.ready = Ready(
            device=trial.device,
            capacity_bytes=2**62,
            limit_bytes=trial.limit_bytes,
            ceiling_bytes=trial.ceiling_bytes,
            enforced=trial.enforced,
            examples=examples,
        )
        return probe_of(trial, self._number)

    def stop(self) -> None:
        """Every trial has ended already."""


def probe_of(trial: Trial, number: int) -> Probe:
    """Return a trial as the probe of process `number`."""
    return Probe(
        batch_size=trial.argument,
        outcome=trial.outcome,
        seconds=trial.seconds,
        process=number,
        peak_bytes=trial.peak_bytes,
        charged_bytes=max(trial.charges, default=None),
        growing_bytes=_growing(trial.charges),
        steps=len(trial.charges),
        live_bytes=trial.live_bytes,
        step_seconds=trial.step_seconds[-1] if trial.step_seconds else None,
        detail=trial.detail,
        failure=trial.failure,
    )


def _growing(charges: Sequence[int]) -> int:
    """Return the bytes that the second half of the steps added; the first steps always grow."""
    return charges[-1] - charges[len(charges) // 2 - 1] if len(charges) > 4 else 0


def check_batch_is_used(trials: Sequence[Trial]) -> None:
    """Check that the steps have something to do with the size that was asked for.

    Raises:
        UsageError: if they have not.
    """
    ok = [trial for trial in trials if trial.outcome == "ok"]
    seen = {t.argument: (t.examples_per_step, t.detail.get("micro_batches")) for t in ok}
    examples, _ = next(iter(seen.values()), (None, None))
    is_constant = len(seen) > 2 and len(set(seen.values())) == 1
    if is_constant and examples is not None and max(seen) > examples:
        sizes = ", ".join(map(str, sorted(seen)))
        raise UsageError(
            f"the command does not use {{batch}}: its steps had {examples} examples with each of "
            f"{sizes}. Does a configuration file or a later argument set the batch size?"
        )


def seen_trial(trials: Sequence[Trial], argument: int) -> Trial:
    """Return the last trial at a size."""
    return next(trial for trial in reversed(trials) if trial.argument == argument)
