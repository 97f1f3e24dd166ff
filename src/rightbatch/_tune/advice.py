"""Advice about a chosen batch size; each item only if it applies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rightbatch._noise import NoiseEstimate
from rightbatch._training.scaling import Scaling
from rightbatch._tune.decision import Expected

FEW_VALUES = 16
"""Values per channel below which BatchNorm's error rises (Wu and He 2018, arXiv 1803.08494)."""
FEW_UPDATES = 10
"""Updates per epoch below which an epoch is too short to count a training in."""
WARM_UP_ABOVE = 1.5
"""Factor on the learning rate above which a warm-up is recommended."""
FASTER = 1.2
"""Speed-up from which mixed precision is recommended."""
IMPROVES = 0.02
"""Share by which the pilot's loss has to fall."""


@dataclass(frozen=True)
class Advice:
    """One item of advice.

    `code` identifies it for programs, `figure` is the measured number behind it, `text` states the
    finding with that number, and `remedy` says what to do.
    """

    code: str
    text: str
    figure: float
    remedy: str

    def __str__(self) -> str:
        return f"{self.text} {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Situation:
    """Everything that advice depends on.

    `values_per_channel` is the smallest of all BatchNorm layers at the chosen micro-batch size;
    `loading` is seconds of loading per second of computing; `bf16` is the speed-up of a step in
    bf16; `unsteady` is the relative uncertainty of the step time (see `spread`); `losses` are
    (examples, smoothed loss) of the pilot. `parts_differ` and `parts_reason` are those of
    `TrainingFacts`.
    """

    chosen: Expected
    noise: NoiseEstimate
    averaged: NoiseEstimate | None
    scaling: Scaling
    base_batch: int
    examples: int | None
    drop_last: bool
    workers: int
    batch_norm: bool
    values_per_channel: float | None
    loading: float
    bf16: float | None
    unsteady: float
    losses: list[tuple[int, float]]
    target_reached: bool | None
    parts_differ: float = 0.0
    parts_reason: str = ""


def advise(s: Situation) -> list[Advice]:
    """Return the items that apply, the most important first."""
    return [
        *_training(s),
        *_parts(s),
        *_noise(s),
        *_normalization(s),
        *_learning_rate(s),
        *_epoch(s),
        *_speed(s),
    ]


def _training(s: Situation) -> Iterator[Advice]:
    if len(s.losses) >= 20:
        share = len(s.losses) // 10
        first = sum(loss for _, loss in s.losses[share : 2 * share]) / share
        last = sum(loss for _, loss in s.losses[-share:]) / share
        if last > (1 - IMPROVES) * first:
            yield Advice(
                "not_improving",
                f"The pilot's loss went from {first:.4g} to {last:.4g}: it did not improve.",
                last / first,
                "Check the learning rate and --base-batch, or increase --budget; the noise scale "
                "is that of an untrained model.",
            )
    if s.target_reached is False:
        yield Advice(
            "target_not_reached",
            f"The pilot ended before the target was reached, at a loss of {s.losses[-1][1]:.4g}.",
            s.losses[-1][1],
            "The noise scale grows during training, so larger sizes may be faster later: increase "
            "--budget, or use train --adapt.",
        )


def _parts(s: Situation) -> Iterator[Advice]:
    """A loss that does not split is another one in parts; BatchNorm has advice of its own."""
    if not s.parts_differ or s.batch_norm:
        return
    chosen = s.chosen
    remedy = f"Train it at a batch that fits as a whole (--max-batch {chosen.micro_batch_size})."
    if chosen.accumulation == 1:
        remedy = "At this size a batch is one part on the device, and trains as it should."
    yield Advice(
        "parts_differ",
        f"The gradient of a batch in parts differs from that of the whole by {s.parts_differ:.2g} "
        f"of its norm: {s.parts_reason}. The noise scale assumes that it does not.",
        s.parts_differ,
        remedy,
    )


def _noise(s: Situation) -> Iterator[Advice]:
    size, noise = s.chosen.batch_size, s.noise
    if noise.value is None:
        yield Advice(
            "noise_scale_unknown",
            f"The noise scale could not be measured; it is above {noise.low:.3g}.",
            noise.low,
            "The size was chosen for that lower bound; increase --budget to measure it.",
        )
    elif size > max(noise.high, s.averaged.high if s.averaged else 0.0):
        yield Advice(
            "above_noise_scale",
            f"{size} is above every estimate of the noise scale ({noise.value:.3g}): "
            f"{1 - s.chosen.efficiency:.0%} of the examples are wasted.",
            1 - s.chosen.efficiency,
            "It is still the fastest size here; use a smaller one if examples or energy cost more "
            "than time.",
        )
    elif 8 * size < noise.low:
        yield Advice(
            "below_noise_scale",
            f"The noise scale of {noise.value:.3g} is far above {size}: {noise.value / size:.0f} "
            "devices could share a batch with little waste.",
            noise.value / size,
            "Add devices; larger batches gain nothing on one device.",
        )


def _normalization(s: Situation) -> Iterator[Advice]:
    if not s.batch_norm:
        return
    values = s.values_per_channel
    if values is not None and values < FEW_VALUES:
        yield Advice(
            "few_values_per_channel",
            f"BatchNorm computes its statistics from {values:.0f} values per channel (micro-batch "
            f"x height x width); below {FEW_VALUES} they are too noisy.",
            values,
            "Use SyncBatchNorm over several devices, GroupNorm, or a larger micro-batch, and call "
            "rightbatch.recalibrate_batchnorm after training.",
        )
    if s.chosen.accumulation > 1:
        yield Advice(
            "accumulation_changes_batch_norm",
            f"BatchNorm sees micro-batches of {s.chosen.micro_batch_size}, not the batch of "
            f"{s.chosen.batch_size}: accumulation changes the training.",
            float(s.chosen.micro_batch_size),
            "Use GroupNorm, which does not depend on the batch, or call "
            "rightbatch.recalibrate_batchnorm after training.",
        )


def _learning_rate(s: Situation) -> Iterator[Advice]:
    factor = s.scaling.learning_rate_factor
    if math.isclose(factor, 1.0):
        return
    also = ""
    if s.scaling.beta2 is not None and s.scaling.epsilon_factor is not None:
        also = f", beta2 to {s.scaling.beta2:.5g} and eps by {s.scaling.epsilon_factor:.3g}"
    warm = " Warm up over the first epoch." if factor > WARM_UP_ABOVE else ""
    yield Advice(
        "learning_rate",
        f"From {s.base_batch} to {s.chosen.batch_size} examples, multiply the learning rate by "
        f"{factor:.3g}{also}.",
        factor,
        f"Rule: {s.scaling.rule}.{warm}",
    )


def _epoch(s: Situation) -> Iterator[Advice]:
    size = s.chosen.batch_size
    if s.examples is None:
        return
    updates = -(-s.examples // size)
    if updates < FEW_UPDATES:
        yield Advice(
            "few_updates",
            f"An epoch has only {updates} updates.",
            float(updates),
            "Set the length of the training in updates, not in epochs.",
        )
    rest = s.examples % size
    if rest and rest < size / 4 and updates > 1 and not s.drop_last:
        yield Advice(
            "small_last_batch",
            f"The last batch of an epoch has {rest} examples, each with {size / rest:.0f} times "
            "the weight of the others.",
            float(rest),
            "Set drop_last; each epoch then leaves out different examples.",
        )


def _speed(s: Situation) -> Iterator[Advice]:
    if s.loading > (1.0 if s.workers else 0.2):
        workers = max(math.ceil(s.loading * max(s.workers, 1) * 1.2), s.workers + 1)
        yield Advice(
            "loader_is_slow",
            f"Loading takes {s.loading:.2g} s for every second of computing.",
            s.loading,
            f"Set workers to {workers} if there are enough cores, or cache the decoded examples.",
        )
    if s.bf16 is not None and s.bf16 >= FASTER:
        yield Advice(
            "mixed_precision",
            f"A step in bf16 was {s.bf16:.2f} times as fast.",
            s.bf16,
            'Set precision="bf16".',
        )
    if s.unsteady > 0.1:
        yield Advice(
            "unsteady_times",
            f"The step time is uncertain by ±{s.unsteady:.0%}: the machine was probably busy.",
            s.unsteady,
            "Repeat on a quiet machine, or increase --budget.",
        )
