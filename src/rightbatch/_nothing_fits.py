"""What to say where nothing fits: what one example needs, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from rightbatch._probe import BuildError, Header, ProbeProcess, Ready
from rightbatch._units import format_bytes


@dataclass(frozen=True)
class Needed:
    """`bytes` that one example needs, None if unknown.

    `how` is `measured` (it ran under the device's own limit), `fake` (fake tensors), `parameters`
    (a lower bound) or `unknown`. `remedies` maps what would help to the bytes it would save.
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
    """Run one example without the user's limit if the device has more, and a fake one."""
    with ProbeProcess(header, 0) as process:
        estimate = process.need()
    remedies = {}
    if estimate is not None:
        remedies = {name: estimate["bytes"] - left for name, left in estimate["remedies"].items()}
    if ready is None or ready.limit_bytes < ready.capacity_bytes:
        with ProbeProcess(header, 0) as process:
            for batch_size in (1, 2):
                try:
                    probe = process.run(batch_size, 2)
                except BuildError:
                    break
                if probe.is_ok:
                    return Needed(probe.charged_bytes, "measured", remedies)
                if probe.outcome != "failed":
                    break
    if estimate is None:
        return Needed()
    return Needed(estimate["bytes"], estimate["how"], remedies)
