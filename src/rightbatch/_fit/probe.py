"""Probes: measured runs of a few steps at one size, each in a worker process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from rightbatch._worker import BuildError, Failure, Header, Outcome, Worker
from rightbatch._worker.dialogue import EXACT_MALLOC


@dataclass(frozen=True)
class Probe:
    """The measurement of one size.

    `outcome` is `ok`, `out_of_memory` (an out-of-memory error), `killed` (the process ended without
    an error, as the kernel ends it when memory runs out) or `failed` (any other error).
    `peak_bytes`, `charged_bytes` and `live_bytes` are those of `rightbatch._device.Reading`;
    after a failure they are None. `growing_bytes` is what the second half of the `steps` added to
    the charge; twice as many steps are expected to add as much again. A run that is not `whole`
    ended early, since it left room for a larger size. `seconds` is the wall time of all steps,
    `step_seconds` that of the last training step (of the last evaluation, for inference).
    `process` numbers the processes; probes in one process ran one after the other.
    """

    batch_size: int
    outcome: Outcome
    seconds: float
    process: int
    peak_bytes: int | None = None
    charged_bytes: int | None = None
    growing_bytes: int = 0
    steps: int | None = None
    whole: bool = True
    live_bytes: int | None = None
    step_seconds: float | None = None
    evaluation_batch_size: int | None = None
    detail: Mapping[str, int] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the size survived."""
        return self.outcome == "ok"

    @property
    def needed_bytes(self) -> int:
        """What the steps needed (bytes): the tensors if the device reports them, else the peak."""
        return int(self.live_bytes if self.live_bytes is not None else self.peak_bytes or 0)

    @property
    def claimed_bytes(self) -> int:
        """What a size has to be granted (bytes): its charge, and what twice as many steps add."""
        return (self.charged_bytes or 0) + self.growing_bytes

    def to_dict(self) -> dict[str, object]:
        """Return the entry of `probes` in the JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class ProbeRequest:
    """Which size to run, and how long.

    At least `steps`, and up to `most_steps` while the charge still grows. `enough` is (steps,
    bytes): the run ends after that many steps if the charge is below the bytes. `limit` is in
    bytes.
    """

    batch_size: int
    steps: int
    limit: int | None = None
    most_steps: int | None = None
    enough: tuple[int, int] = (0, 0)


class ProbeProcess(Worker):
    """A worker that runs sizes one after the other, the `number`th of a search.

    The ceiling is the smaller of `limit` and the device's capacity, less the margin; it is enforced
    if the device can. `exact` sets `EXACT_MALLOC`, for small measurements on the CPU.
    """

    entry = "rightbatch._fit.probe_worker:run"

    def __init__(self, header: Header, number: int, *, exact: bool = False) -> None:
        super().__init__(header, environment=EXACT_MALLOC if exact else None)
        self.number = number

    def run(self, request: ProbeRequest) -> Probe:
        """Run training steps and one evaluation; only the first request's `limit` counts.

        Raises:
            BuildError: if the training could not be built.
        """
        started = time.perf_counter()
        command = asdict(request) | {"most_steps": request.most_steps or request.steps}
        try:
            report = self.ask(command, "probe")
        except BuildError as error:
            if not self.is_built:
                raise
            seconds = time.perf_counter() - started
            return Probe(
                request.batch_size, error.outcome, seconds, self.number, failure=error.failure
            )
        failure = report.pop("failure", None)
        return Probe(process=self.number, failure=Failure(**failure) if failure else None, **report)
