"""What was seen of a training that ran as it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WatchRequest:
    """How a watched training runs.

    After `steps` steps it is ended; None lets it run to its end. `show` gets what was seen so far,
    about once a second. With `stdout_to_stderr` the command's output leaves stdout free.
    """

    steps: int | None = None
    show: Callable[[Watched], object] = lambda watched: None
    stdout_to_stderr: bool = False


@dataclass(frozen=True)
class SampledUpdate:
    """Squared gradient norms of one update: of the whole gradient, and of each micro-batch.

    `parts` are pairs of the squared norm and the examples; `scale` is the factor between the sum of
    the micro-batches' gradients and the whole one (1/ranks under DistributedDataParallel). `update`
    is its number. With `of_layers` the gradients are those of linear, convolution and embedding
    layers, and the parts are of one micro-batch.
    """

    whole: float
    parts: tuple[tuple[float, int], ...]
    scale: float = 1.0
    update: int = 0
    of_layers: bool = False


@dataclass(frozen=True)
class LiveBytes:
    """Memory in use on the CPU, as malloc counts it, over all ranks.

    `fixed` bytes are in use between two steps, `peak` bytes when a micro-batch of `examples`
    examples on each rank is being processed, up to the optimizer's update. `gradients` of the fixed
    bytes are freed between; at the peak, some of them may be there again.
    """

    examples: int
    fixed: int
    peak: int
    gradients: int = 0


@dataclass(frozen=True)
class Watched:
    """A training as its agents saw it, over all ranks.

    `batch_size` is the number of examples of a full step, `micro_batches` how many parts it has on
    each rank; None if unknown. `step_seconds` and `waited_seconds` are of each step, `losses` are
    pairs of a step and the value at the root of a backward pass (a mean over a micro-batch, divided
    by the accumulation where the script divides). `peak_bytes` is what the training needed,
    `limit_bytes` what the device has, `fixed_bytes` weights, gradients and optimizer state.
    `live` is what a few full steps had in use. `updates` are sampled for the noise scale;
    `no_noise` says why there are none.
    """

    batch_size: int | None
    micro_batches: int | None
    ranks: int
    steps: int
    step_seconds: tuple[float, ...]
    waited_seconds: tuple[float, ...]
    losses: tuple[tuple[int, float], ...]
    device: str
    peak_bytes: int | None
    limit_bytes: int | None
    fixed_bytes: int | None
    live: LiveBytes | None = None
    updates: tuple[SampledUpdate, ...] = ()
    no_noise: str = ""
    examples: int | None = None
    exit_code: int | None = None
    learning_rate: float | None = None
    """Of the first optimizer, before its schedule."""
    betas: tuple[float, float] | None = None
    """Of Adam and its variants; None for others."""
    notes: tuple[str, ...] = field(default=())
