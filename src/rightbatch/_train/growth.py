"""A batch size that grows with the noise scale while a model trains.

Early in a training the gradient stands out of the noise and large batches waste examples; later
they pay. So now and then the weights are held still for a moment, the noise scale is taken again,
and `tune`'s decision is made again with it: for the size in use against twice that size, at the
step times that `tune` has measured.
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
"""Of the training's time that measuring may take."""
WINDOW = 0.5
"""Seconds of the first window; later ones take their share of the time since the last."""
REMEMBERED = 6
"""Windows that a decision rests on; the noise scale grows, so older ones say too little."""
LEAST = 3


@dataclass(frozen=True)
class Grown:
    """From now on batches of `batch_size` in parts of `micro_batch_size`, with the learning rate
    changed by `scaling`."""

    batch_size: int
    micro_batch_size: int
    scaling: Scaling
    reason: str


class Growth(Observer):
    """Measures when it is time, and lets the batch size grow where that is faster.

    `samples` are step times by micro-batch size, of which none above `most_at_once` is used.
    Nothing above the largest size that leaves enough updates is chosen.
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
        """Begin to average the weights; what the loop trains bounds the size."""
        self._average = WeightAverage(loop.model)
        self._throughput = Throughput(self._samples, workers=loop.facts.workers)
        self._most = most_useful(loop.examples, self._epochs)
        self._betas = loop.facts.betas

    def on_step(self, loop: WorkloadLoop, report: StepLoss) -> None:
        """Measure if it is time, and take a larger batch if that is faster."""
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
        """How long to measure now, `seconds` into the training; None while it is too early."""
        since = seconds - self._measured_at
        return SHARE * since if SHARE * since >= WINDOW else None

    def grown(self, seen: NoiseWindow, batch_size: int, seconds: float) -> Grown | None:
        """With what a window has shown: twice the size where that is not slower now.

        At the same speed half the updates are left, each with half the noise.
        """
        self._measured_at = seconds
        self._seen = (self._seen + seen).last(REMEMBERED)
        noise = self.estimate
        if len(self._seen.at_weights) < LEAST or noise is None or noise.value is None:
            return None
        twice = 2 * batch_size
        if twice > self._most:
            return None
        decision = decide(self._throughput, self._seen, (batch_size, twice))
        now, then = (each.relative_time for each in decision.expected)
        if then > now:
            return None
        rule = scaling(self._betas, batch_size, twice, decision.noise_scale)
        self._seen = NoiseWindow()  # the next decision rests on what the new size leads to
        micro = decision.expected[1].micro_batch_size
        return Grown(
            twice,
            micro,
            rule,
            f"{noise}: batches of {twice} are {now / then:.2f} times as fast to the target as of "
            f"{batch_size}, in half the updates; learning rate x {rule.learning_rate_factor:.3g} "
            f"({rule.rule})",
        )

    @property
    def estimate(self) -> NoiseEstimate | None:
        """From the windows that are remembered."""
        return estimate_from(self._seen.at_weights)

    def state_dict(self) -> dict[str, Any]:
        """All of it, step times included, since a training that resumes has no `tune`."""
        return {
            "samples": {size: [asdict(s) for s in steps] for size, steps in self._samples.items()},
            "seen": self._seen,
            "measured_at": self._measured_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the step times are those of the constructor."""
        self._seen = state["seen"]
        self._measured_at = state["measured_at"]


def samples_of(state: dict[str, Any]) -> dict[int, list[StepSeconds]]:
    """The step times in a `state_dict`."""
    return {size: [StepSeconds(**s) for s in steps] for size, steps in state["samples"].items()}
