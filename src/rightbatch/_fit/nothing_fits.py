"""What to say where nothing fits: what one example needs, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from rightbatch._fit.probe import ProbeProcess
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.remedies import FOR_ONE_EXAMPLE, bytes_saved, tasks_of
from rightbatch._predict.trace import Trace
from rightbatch._units import format_bytes
from rightbatch._worker import BuildError, Header, Ready


@dataclass(frozen=True)
class Needed:
    """`bytes` that one example needs, None if unknown.

    `how` is `measured` (it ran under the device's own limit), `fake` or `real` (its step was
    followed with such tensors), `parameters` (a lower bound) or `unknown`. `remedies` maps what
    would help to the bytes it would save.
    """

    bytes: int | None = None
    how: str = "unknown"
    remedies: dict[str, int] = field(default_factory=dict)

    def in_words(self) -> str:
        if self.bytes is None:
            return "one example needs more memory than there is"
        size = format_bytes(self.bytes)
        return {
            "measured": f"one example needs {size} (measured without the limit)",
            "fake": f"one example needs about {size} (from its tensors' shapes)",
            "real": f"one example needs about {size} (from one step that was followed)",
            "parameters": f"weights, gradients and optimizer alone need {size}",
        }[self.how]

    def remedies_in_words(self) -> str:
        helping = [
            f"{name} saves about {format_bytes(size)}"
            for name, size in sorted(self.remedies.items(), key=lambda item: -item[1])
        ]
        if not helping:
            helping = ["a smaller model, smaller inputs or a lower precision", "or more memory"]
        return "What would help: " + ", ".join(helping)


def what_is_needed(header: Header, ready: Ready | None) -> Needed:
    """Run one example without the user's limit if the device has more, and follow a fake one."""
    with FollowProcess(header) as process:
        estimate, remedies = _followed(process)
    if ready is None or ready.limit_bytes < ready.capacity_bytes:
        with ProbeProcess(header, 0) as prober:
            for batch_size in (1, 2):
                try:
                    probe = prober.run(batch_size, 2)
                except BuildError:
                    break
                if probe.is_ok:
                    return Needed(probe.charged_bytes, "measured", remedies)
                if probe.outcome != "failed":
                    break
    return estimate


def _followed(process: FollowProcess) -> tuple[Needed, dict[str, int]]:
    """What one example needs by its tensors' shapes, and what each remedy would save of it."""
    for batch_size in (1, 2):  # one example may be one too few, for BatchNorm
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
