"""The result of `run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from rightbatch._noise import NoiseEstimate
from rightbatch._run.headroom import Headroom, headroom
from rightbatch._training.sampled_noise import noise_scale
from rightbatch._training.watched import Watched
from rightbatch._units import format_bytes, format_step
from rightbatch._workload.notebook import ShownInNotebooks

_WARM_UP = 2  # steps that are slower than the others
_WAITING = 0.1  # share of waiting for data above which there is advice


@dataclass(frozen=True)
class RunReport(ShownInNotebooks):
    """What a training did with its memory and its batch.

    `step_seconds` is the median with the 5th and 95th percentile, `loading_share` the part of the
    time that was spent waiting for data, `largest_batch_size` what would fit. `losses` are pairs of
    a step and the mean loss of a micro-batch (divided by the accumulation where the script divides
    it). `exit_code` is the command's own; None if it was ended after `steps`.
    """

    batch_size: int | None
    micro_batches: int | None
    ranks: int
    steps: int
    step_seconds: tuple[float, float, float] | None
    loading_share: float | None
    device: str
    peak_bytes: int | None
    limit_bytes: int | None
    largest_batch_size: Headroom
    noise_scale: NoiseEstimate | None
    noise_reason: str
    advice: tuple[str, ...]
    reason: str
    exit_code: int | None
    losses: tuple[tuple[int, float], ...] = field(repr=False)

    def __str__(self) -> str:
        if not self.steps:
            return "\n".join(["no training step was seen", *(f"- {each}" for each in self.advice)])
        parts = [f"batch {self.batch_size or 'unknown'}", self._steps()]
        if self.peak_bytes is not None and self.limit_bytes is not None:
            peak, limit = format_bytes(self.peak_bytes), format_bytes(self.limit_bytes)
            parts.append(f"peak {peak} of {limit} on {self.device}: {self._fits()}")
        noise = f"noise scale unknown, {self.noise_reason}"
        if self.noise_scale is not None:
            noise = " ".join([str(self.noise_scale), *self.noise_scale.notes])
        parts.append(noise)
        return "\n".join([" · ".join(parts), *(f"- {each}" for each in self.advice)])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch run --json`."""
        middle, low, high = self.step_seconds or (None, None, None)
        return {
            "batch_size": self.batch_size,
            "micro_batches": self.micro_batches,
            "ranks": self.ranks,
            "steps": self.steps,
            "step_seconds": {"median": middle, "low": low, "high": high},
            "loading_share": self.loading_share,
            "device": self.device,
            "peak_bytes": self.peak_bytes,
            "limit_bytes": self.limit_bytes,
            "largest_batch_size": {
                "low": self.largest_batch_size.low,
                "high": self.largest_batch_size.high,
                "reason": self.largest_batch_size.reason,
            },
            "noise_scale": self.noise_scale.to_dict() if self.noise_scale else None,
            "noise_reason": self.noise_reason,
            "losses": [list(pair) for pair in self.losses],
            "advice": list(self.advice),
            "reason": self.reason,
            "exit_code": self.exit_code,
        }

    def _steps(self) -> str:
        if self.step_seconds is None:
            return f"{self.steps} steps"
        waiting = f" ({self.loading_share:.0%} waiting for data)" if self.loading_share else ""
        return f"{self.steps} steps, {format_step(self.step_seconds[0])} each{waiting}"

    def _fits(self) -> str:
        found = self.largest_batch_size
        if found.low is None:
            return f"what would fit is unknown, {found.reason}"
        return f"about {found.low} to {found.high} would fit"


def report_of(watched: Watched, *, margin: float, memory: int | None, seed: int = 0) -> RunReport:
    """Return the report of what was seen."""
    fits = headroom(watched, margin, memory)
    noise = noise_scale(watched.updates, seed)
    seconds = watched.step_seconds[_WARM_UP:] or watched.step_seconds
    waited = watched.waited_seconds[_WARM_UP:] or watched.waited_seconds
    share = sum(waited) / sum(seconds) if sum(seconds) > 0 else None
    noise_reason = ""
    if noise is None:
        noise_reason = watched.no_noise or _why_unknown(len(watched.updates))
    return RunReport(
        batch_size=watched.batch_size,
        micro_batches=watched.micro_batches,
        ranks=watched.ranks,
        steps=watched.steps,
        step_seconds=_spread(seconds),
        loading_share=share,
        device=watched.device,
        peak_bytes=watched.peak_bytes,
        limit_bytes=min(filter(None, (memory, watched.limit_bytes)), default=None),
        largest_batch_size=fits,
        noise_scale=noise,
        noise_reason=noise_reason,
        advice=(*_advice(watched, fits, noise, share), *watched.notes),
        reason=f"watched over {watched.steps} steps",
        exit_code=watched.exit_code,
        losses=watched.losses,
    )


def _why_unknown(samples: int) -> str:
    if samples < 2:
        return "too few steps were sampled"
    return f"the gradients of {samples} sampled steps cannot be told from noise"


def _spread(seconds: tuple[float, ...]) -> tuple[float, float, float] | None:
    if len(seconds) < 2:
        return (seconds[0],) * 3 if seconds else None
    low, *_, high = quantiles(seconds, n=20)
    return median(seconds), min(low, median(seconds)), max(high, median(seconds))


def _advice(
    watched: Watched, fits: Headroom, noise: NoiseEstimate | None, share: float | None
) -> list[str]:
    advice = []
    if share is not None and share > _WAITING:
        advice.append(
            f"{share:.0%} of the time is spent waiting for data: more loader workers "
            "(num_workers), or less work for each example"
        )
    size = watched.batch_size
    if noise is not None and noise.value is not None and size:
        larger = _larger(size, noise.value, fits)
        if larger is not None:
            examples = (1 + larger / noise.value) / (1 + size / noise.value)
            advice.append(
                f"{larger} instead of {size} would need {examples:.2f} times the examples for the "
                f"same loss, in {examples * size / larger:.2f} times the steps"
            )
        elif size > 2 * noise.high:
            advice.append(
                f"{size} is far above the noise scale of these steps: a smaller batch needs fewer "
                "examples for the same loss; the noise scale grows during a training"
            )
    return advice


def _larger(size: int, noise: float, fits: Headroom) -> int | None:
    """Return the largest doubling of a batch that is below the noise scale and fits."""
    found = size
    while 2 * found <= noise and (fits.low is None or 2 * found <= fits.low):
        found *= 2
    return found if found > size else None
