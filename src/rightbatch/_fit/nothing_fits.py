"""If nothing fits: the memory that one example needs, and ways to save memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from rightbatch._fit.probe import ProbeProcess, ProbeRequest
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.remedies import FOR_ONE_EXAMPLE, bytes_saved, tasks_of
from rightbatch._predict.trace import Trace
from rightbatch._units import format_bytes
from rightbatch._worker import BuildError, Header, Ready


@dataclass(frozen=True)
class Needed:
    """Memory that one example needs, in `bytes`; None if unknown.

    `how` is `measured` (it ran with all of the device's memory), `fake` or `real` (its step was
    followed with such tensors), `parameters` (a lower bound) or `unknown`. `remedies` maps ways to
    save memory to the bytes they save.
    """

    bytes: int | None = None
    how: str = "unknown"
    remedies: dict[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """Return what one example needs, as a clause."""
        if self.bytes is None:
            return "one example needs more memory than is available"
        size = format_bytes(self.bytes)
        return {
            "measured": f"one example needs {size} (measured without the limit)",
            "fake": f"one example needs about {size} (from its tensors' shapes)",
            "real": f"one example needs about {size} (from following one step)",
            "parameters": f"weights, gradients and optimizer alone need {size}",
        }[self.how]

    def describe_remedies(self) -> str:
        """Return the ways to save memory, the largest saving first."""
        remedies = [
            f"{name} (about {format_bytes(size)})"
            for name, size in sorted(self.remedies.items(), key=lambda item: -item[1])
        ]
        if not remedies:
            return "Use a smaller model, smaller inputs, a lower precision, or more memory"
        return "Ways to save memory: " + ", ".join(remedies)


def what_is_needed(header: Header, ready: Ready | None) -> Needed:
    """Follow one example, and run it without the user's limit if the device has more memory."""
    with FollowProcess(header) as process:
        estimate, remedies = _followed(process)
    if ready is None or ready.limit_bytes < ready.capacity_bytes:
        with ProbeProcess(header, 0) as prober:
            for batch_size in (1, 2):
                try:
                    probe = prober.run(ProbeRequest(batch_size, 2))
                except BuildError:
                    break
                if probe.is_ok:
                    return Needed(probe.charged_bytes, "measured", remedies)
                if probe.outcome != "failed":
                    break
    return estimate


def _followed(process: FollowProcess) -> tuple[Needed, dict[str, int]]:
    """Return what one example needs by its tensors' shapes, and what each remedy saves (bytes)."""
    for batch_size in (1, 2):  # BatchNorm cannot train on one example
        followed = process.follow([{"batch_size": batch_size}])
        (answer,) = followed.answers
        if answer["outcome"] == "ok":
            break
    else:
        at_least = followed.at_least
        return (Needed(at_least, "parameters") if at_least else Needed()), {}
    peak = Trace.from_dict(answer["trace"]).peak_bytes
    answers = process.follow(tasks_of(FOR_ONE_EXAMPLE, batch_size)).answers
    remedies = bytes_saved(peak, FOR_ONE_EXAMPLE, answers)
    return Needed(peak, followed.how, remedies), remedies
