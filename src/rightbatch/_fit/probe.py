"""Probes: measured runs of a few steps at one size, in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from rightbatch._worker import BuildError, Failure, Header, Outcome, Worker
from rightbatch._worker.dialogue import EXACT_MALLOC


@dataclass(frozen=True)
class Probe:
    """One size that was run.

    `outcome` is `ok`, `out_of_memory` (an error that says so), `killed` (the process ended without
    a word, as the kernel ends it when memory runs out) or `failed` (an error that is not memory).
    `peak_bytes`, `charged_bytes` and `live_bytes` are those of `rightbatch._device.Reading`;
    after a failure they are None. `growing_bytes` is what the second half of the `steps` added to
    the charge; as much again is expected of twice as many. A run that is not `whole` ended early,
    since it left room for a larger size. `seconds` is the wall time of all steps, `step_seconds`
    that of the last training step (of the last evaluation, for inference). `process` counts the
    processes; probes of one process ran one after the other.
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
        """What the steps themselves needed: tensors where the device knows, else the peak."""
        return int(self.live_bytes if self.live_bytes is not None else self.peak_bytes or 0)

    @property
    def claimed_bytes(self) -> int:
        """What a size must be granted: its charge, and what twice as many steps would add."""
        return (self.charged_bytes or 0) + self.growing_bytes

    def to_dict(self) -> dict[str, object]:
        """Return the entry of `probes` in the JSON document."""
        return asdict(self)


class ProbeProcess(Worker):
    """A worker that runs sizes one after the other, the `number`th of a search.

    The ceiling is the smaller of `limit` and what the device has, less the margin, and is enforced
    where that can be. `exact` makes small measurements on the CPU exact.
    """

    entry = "rightbatch._fit.probe_worker:run"

    def __init__(self, header: Header, number: int, *, exact: bool = False) -> None:
        super().__init__(header, environment=EXACT_MALLOC if exact else None)
        self.number = number

    def run(
        self,
        batch_size: int,
        steps: int,
        limit: int | None = None,
        most_steps: int | None = None,
        enough: tuple[int, int] = (0, 0),
    ) -> Probe:
        """Run training steps and one evaluation; `limit` is heard with the first run.

        At least `steps`, and more of them up to `most_steps` while the charge still grows. With
        `enough` of (steps, bytes) it ends after so many steps if its charge is below the bytes.

        Raises:
            BuildError: if the training could not even be built.
        """
        started = time.perf_counter()
        command = {
            "batch_size": batch_size,
            "limit": limit,
            "steps": steps,
            "most_steps": most_steps or steps,
            "enough": enough,
        }
        try:
            report = self.ask(command, "probe")
        except BuildError as error:
            if not self.is_built:
                raise
            seconds = time.perf_counter() - started
            return Probe(batch_size, error.outcome, seconds, self.number, failure=error.failure)
        failure = report.pop("failure", None)
        return Probe(process=self.number, failure=Failure(**failure) if failure else None, **report)
