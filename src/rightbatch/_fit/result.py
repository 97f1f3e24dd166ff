"""The result of `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rightbatch._units import format_bytes
from rightbatch._workload.notebook import ShownInNotebooks
from rightbatch._workload.sizes import Sizes

if TYPE_CHECKING:
    from rightbatch._fit.probe import Probe


@dataclass(frozen=True)
class FitResult(ShownInNotebooks):
    """The largest batch size that fits, and the measurements behind it.

    `peak_bytes` is the peak at `batch_size`, `limit_bytes` what the device may use, both without
    what the process held before the workload; `limit_enforced` says whether exceeding the limit
    really fails. `evaluation_batch_size` is the size of the evaluation that also fits. `examples`
    is the number in one epoch, `seconds` the duration of the search.

    For a command, `batch_size` is the number of examples that its steps were seen to have over all
    ranks, `argument` the text put for `{batch}`, `steps` how many of them were measured; `notes`
    say what the measurement does not cover. `sizes` are those that the workload takes, as far as it
    rejected others.
    """

    batch_size: int
    smallest_batch_size: int
    peak_bytes: int
    limit_bytes: int
    limit_enforced: bool
    evaluation_batch_size: int | None
    examples: int | None
    device: str
    margin: float
    seconds: float
    reason: str
    probes: tuple[Probe, ...] = field(repr=False)
    argument: int | None = None
    steps: int | None = None
    notes: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)

    def __str__(self) -> str:
        command = ""
        if self.argument is not None:
            command = f" (measured over {self.steps} steps of your command)"
            if self.argument != self.batch_size:
                command += f"\n{{batch}} = {self.argument}"
        return "\n".join(
            [
                f"batch size {self.batch_size}: peak {format_bytes(self.peak_bytes)} "
                f"of {format_bytes(self.limit_bytes)} on {self.device}{command}",
                self.reason,
                *(f"- {note}" for note in self.notes),
            ]
        )

    def _table(self) -> Sequence[Sequence[object]]:
        rows = []
        for probe in sorted(self.probes, key=lambda probe: probe.batch_size):
            peak = "" if probe.peak_bytes is None else format_bytes(probe.peak_bytes)
            rows.append((probe.batch_size, probe.outcome.replace("_", " "), peak))
        return [("batch", "outcome", "peak"), *rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch fit --json`."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__} | {
            "probes": [probe.to_dict() for probe in self.probes],
            "sizes": asdict(self.sizes),
        }
