"""A batch size that grows with the noise scale while a model trains.

Early in a training the noise scale is low and large batches waste examples; later they are faster.
So from time to time the weights are held still in a short window that measures the noise scale, and
`tune`'s decision between the current size and twice that size is repeated, with the step times that
`tune` measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rightbatch._noise import NoiseEstimate, NoiseWindow, WeightAverage, estimate_from
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import Observer, StepLoss
from rightbatch._training.scaling import Scaling, scaling
from rightbatch._training.updates import most_useful
from rightbatch._tune.decision import decide
from rightbatch._tune.throughput import Throughput
from rightbatch._workload.workload import StepSeconds

SHARE = 0.03
"""Share of the training's time for measurements."""
WINDOW = 0.5
"""Seconds of the first window; later ones take their share of the time since the last."""
MAX_WINDOWS = 6
"""Windows that a decision uses; the noise scale grows, so older ones are out of date."""
MIN_WINDOWS = 3


@dataclass(frozen=True)
class Grown:
    """A larger batch size, its micro-batch size, and how the optimizer is scaled for it."""

    batch_size: int
    micro_batch_size: int
    scaling: Scaling
    reason: str


class Growth(Observer):
    """Measures the noise scale from time to time, and doubles the batch size if that is faster.

    `samples` are step times by micro-batch size; sizes above `most_at_once` are not used. The size
    never grows beyond the largest one that leaves enough updates (`most_useful`).
    """

    def __init__(
        self,
        samples: Mapping[int, Sequence[StepSeconds]],
        *,
        epochs: int | None,
        most_at_once: int | None = None,
    ) -> None:
        most = max(most_at_once or max(samples), min(samples))
        self._samples = {size: tuple(steps) for size, steps in samples.items() if size <= most}
        self._epochs = epochs
        self._throughput = Throughput(self._samples)
        self._most = 1
        self._betas: tuple[float, float] | None = None
        self._seen = NoiseWindow()
        self._measured_at = 0.0
        self._average: WeightAverage | None = None

    def on_start(self, loop: WorkloadLoop) -> None:
        """Start the average of the weights, and take the bounds of the size from the loop."""
        self._average = WeightAverage(loop.model)
        self._throughput = Throughput(self._samples, workers=loop.facts.workers)
        self._most = most_useful(loop.examples, self._epochs)
        self._betas = loop.facts.betas

    def on_step(self, loop: WorkloadLoop, report: StepLoss) -> None:
        """Measure if a window is due, and double the batch size if that is faster."""
        assert self._average is not None
        self._average.update()
        at = loop.state
        seconds = self.window_seconds(at.seconds)
        if seconds is None:
            return
        seen = noise_windows(loop, seconds, self._average)
        grown = self.grown(seen, at.batch_size, at.seconds)
        if grown is not None:
            loop.resize(
                grown.batch_size,
                grown.micro_batch_size,
                batch_factor=grown.scaling.batch_factor,
                rate_factor=grown.scaling.learning_rate_factor,
                reason=grown.reason,
            )

    def window_seconds(self, seconds: float) -> float | None:
        """Return how long to measure now, `seconds` into the training; None if it is too early."""
        since = seconds - self._measured_at
        return SHARE * since if SHARE * since >= WINDOW else None

    def grown(self, seen: NoiseWindow, batch_size: int, seconds: float) -> Grown | None:
        """Add a window's observations, and return twice the size if that is not slower.

        At equal speed the larger size is taken: half the updates, each with half the noise.
        """
        self._measured_at = seconds
        self._seen = (self._seen + seen).last(MAX_WINDOWS)
        noise = self.estimate
        if len(self._seen.at_weights) < MIN_WINDOWS or noise is None or noise.value is None:
            return None
        twice = 2 * batch_size
        if twice > self._most:
            return None
        decision = decide(self._throughput, self._seen, (batch_size, twice))
        now, then = (each.relative_time for each in decision.expected)
        if then > now:
            return None
        rule = scaling(self._betas, batch_size, twice, decision.noise_scale)
        self._seen = NoiseWindow()  # the next decision uses windows at the new size only
        micro = decision.expected[1].micro_batch_size
        return Grown(
            twice,
            micro,
            rule,
            f"{noise}: batch size {twice} is expected to reach the target {now / then:.2f} times "
            f"as fast as {batch_size}; learning rate x {rule.learning_rate_factor:.3g} "
            f"({rule.rule})",
        )

    @property
    def estimate(self) -> NoiseEstimate | None:
        """The noise scale from the latest windows; None if there are none."""
        return estimate_from(self._seen.at_weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the step times, since a resumed training does not run `tune`."""
        return {
            "samples": {size: [asdict(s) for s in steps] for size, steps in self._samples.items()},
            "seen": asdict(self._seen),  # a checkpoint stores plain values
            "measured_at": self._measured_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, except for the step times, which the constructor takes."""
        self._seen = NoiseWindow(**state["seen"])
        self._measured_at = state["measured_at"]


def samples_of(state: dict[str, Any]) -> dict[int, list[StepSeconds]]:
    """Return the step times in a `state_dict`."""
    return {size: [StepSeconds(**s) for s in steps] for size, steps in state["samples"].items()}
