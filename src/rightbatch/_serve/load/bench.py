"""`rightbatch bench serve`: the largest rate in time on this machine, measured by open-loop loads.

The same loads run with the engine's batches and with batches of 1, which shows whether batching
helps here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightbatch._device import is_out_of_memory
from rightbatch._errors import (
    MissingExtraError,
    NothingFitsError,
    RightbatchError,
    UsageError,
    WorkloadError,
)
from rightbatch._progress import Live
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.calibration import Calibration
from rightbatch._serve.engine.service_times import ServiceTable
from rightbatch._serve.load.arrivals import Kind, schedule
from rightbatch._serve.load.early_stopping import SHARE
from rightbatch._serve.load.export import (
    TARGETS,
    BatchSettings,
    Target,
    by_image,
    check_batches,
    check_export,
    is_batch_dynamic,
    open_folder,
    write_export,
)
from rightbatch._serve.load.load_test import LoadResult, run
from rightbatch._serve.load.rate_search import LargestRate, largest_rate
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Image, Model
from rightbatch._units import parse_seconds

_KINDS: tuple[Kind, ...] = ("cameras", "poisson")
_RESOLUTION = 0.02  # of the search, as a share of the guessed rate
_TARGETS = 10  # shortest load, in latency targets
_MIN_GAIN = 1.02  # smallest gain that counts as a benefit of batching
_NOISE_SHAPE = (480, 640, 3)  # of the random image that is sent by default


@dataclass(frozen=True)
class BenchResult:
    """The calibration and the measured rates.

    `rates` has, for `cameras` and `poisson` arrivals, the largest rate with batches and with
    batches of 1, including all runs.
    """

    model: str
    latency: float
    calibration: Calibration
    camera_rate: float
    rates: dict[Kind, tuple[LargestRate, LargestRate]]
    device: str | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def meets_target(self) -> bool:
        """Whether there is a rate that the model serves in time."""
        return any(batched.rate for batched, _ in self.rates.values())

    @property
    def reason(self) -> str:
        return "; ".join(self._verdict(kind) for kind in self.rates)

    def __str__(self) -> str:
        lines = [f"{self.model} within {1000 * self.latency:g} ms: {self.calibration}"]
        for kind, (batched, single) in self.rates.items():
            what = f"cameras at {self.camera_rate:g} frames/s" if kind == "cameras" else "requests"
            lines += [f"{what}: {batched}", f"  one by one: {single}"]
        return "\n".join([*lines, self.reason])

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "latency_target_ms": 1000 * self.latency,
            "camera_rate": self.camera_rate,
            "calibration": self.calibration.to_dict(),
            "rates": {
                kind: {"batched": batched.to_dict(), "one_by_one": single.to_dict()}
                for kind, (batched, single) in self.rates.items()
            },
            "reason": self.reason,
        }

    def settings(self, model: str, served: Model) -> BatchSettings:
        """Return what another server needs to batch this model alike.

        Args:
            model: its spec.
            served: what that opened.
        """
        size = self.calibration.largest_batch
        slow = ServiceTable(self.calibration.samples).slow_seconds(size)
        where = f" on {self.device}" if self.device else ""
        return BatchSettings(
            model=model,
            batch_size=size,
            latency=self.latency,
            queue_seconds=max(self.latency - slow, 0.0),
            device=self.device,
            is_fixed=self.sizes is not None,
            is_declared=not is_batch_dynamic(served),
            by_image=by_image(served),
            reason=f"rightbatch bench serve: {self.model}{where} within "
            f"{1000 * self.latency:g} ms, batches up to {size} take {1000 * slow:.3g} ms",
        )

    def _verdict(self, kind: Kind) -> str:
        batched, single = (found.rate for found in self.rates[kind])
        what = "cameras" if kind == "cameras" else "requests"
        if not single:
            return f"{what}: {'in time with batches only' if batched else 'none in time'}"
        gain = batched / single
        if gain >= _MIN_GAIN:
            return f"{what}: batches serve {gain:.2f} times as many as one by one"
        return f"{what}: batching does not help here ({gain:.2f} times as many as one by one)"


def bench(
    model: Any,
    latency: float | str,
    *,
    image: str | Path | Image | None = None,
    seconds: float = 5.0,
    camera_rate: float = 10.0,
    memory: int | str | None = None,
    max_batch: int | None = None,
    device: str | None = None,
    seed: int = 0,
    export: Target | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> BenchResult:
    """Measure how many frames per second a model serves in time on this machine.

    Args:
        model: an argument of `open_model`.
        latency: target: seconds, or text like `"100ms"`.
        image: sent to the model: a picture, a folder of pictures, or an array; by default noise.
        seconds: duration of each load; at least ten times the target.
        camera_rate: frames per second of a camera.
        memory: limit for batches, as for `Server`.
        max_batch: the most images in a batch.
        device: where the model runs.
        seed: of the arrival times.
        export: write the batch size and the delay that were found as settings of this server.
        out: the folder in which `export` writes, if a rate is in time.
        progress: show the progress on a terminal.
        options: of the model's integration.

    Raises:
        UsageError: if an argument is invalid.
        NothingFitsError: if memory runs out at the smallest batch.
        WorkloadError: if the model raises another error there.
    """
    if seconds <= 0 or camera_rate <= 0:
        raise UsageError(
            f"seconds and camera_rate must be above 0, got {seconds} and {camera_rate}"
        )
    if out is not None and export is None:
        raise UsageError(f"--out requires --export {TARGETS}")
    file = None if export is None else check_export(export, model, out, device)
    images = _images(image, seed)
    with ExitStack() as stack:
        served = stack.enter_context(closing(open_model(model, device=device, **options)))
        if export is not None and file is not None:
            check_batches(export, served)
            stack.enter_context(open_folder(file.parent))
        live = stack.enter_context(Live("bench", enabled=progress))
        if memory is not None:
            from rightbatch._serve.models.memory import largest_batch_within

            live.show(f"finding the largest batch within {memory}")
            limits = {"device": device, "max_batch": max_batch, **options}
            max_batch = largest_batch_within(memory, model, images[0].shape, **limits).batch_size
        # In a short load the queue could absorb a rate that cannot be sustained.
        seconds = max(seconds, _TARGETS * parse_seconds(latency))
        load = _Load(seconds, camera_rate, seed, live.show)
        result = _bench(served, latency, images, load, max_batch)
        if export is not None and file is not None and result.meets_target:
            write_export(export, result.settings(str(model), served), file)
    return result


def _bench(
    model: Model, latency: float | str, images: list[Image], load: _Load, max_batch: int | None
) -> BenchResult:
    rates: dict[Kind, tuple[LargestRate, LargestRate]] = {}
    smallest = min(model.sizes) if model.sizes else 1
    with (
        Batcher(model, latency, sizes=model.sizes, max_batch=max_batch) as batcher,
        Batcher(model, latency, sizes=model.sizes, max_batch=smallest) as single,
    ):
        calibration = _calibrated(batcher, model, images[0], load.show)
        _calibrated(single, model, images[0], load.show)
        for kind in _KINDS:
            guess = max(calibration.requests_per_second, 1.0)
            batched = load.largest(kind, batcher, images, guess)
            one_by_one = load.largest(kind, single, images, max(batched.rate, 1.0))
            rates[kind] = (batched, one_by_one)
    device = getattr(model, "device", None)
    return BenchResult(
        model.name,
        batcher.latency,
        calibration,
        load.camera_rate,
        rates,
        device,
        model.sizes,
    )


def _calibrated(
    batcher: Batcher, model: Model, image: Image, show: Callable[[str], None]
) -> Calibration:
    """Return the calibration of a batcher.

    Raises:
        NothingFitsError: if memory runs out at the smallest batch.
        WorkloadError: if the model raises another error there.
    """
    try:
        return batcher.calibrate(image, show)
    except RightbatchError:
        raise
    except Exception as error:
        size = min(model.sizes) if model.sizes else 1
        name = type(error).__name__
        if is_out_of_memory(error):
            raise NothingFitsError(
                f"nothing fits: {model.name} runs out of memory at a batch of {size} ({error})",
                error_type=name,
                error_message=str(error),
            ) from error
        reason = f"{model.name} failed at a batch of {size}: {name}: {error}"
        raise WorkloadError.of(error, reason) from error


@dataclass(frozen=True)
class _Load:
    """Parameters of the loads."""

    seconds: float
    camera_rate: float
    seed: int
    show: Callable[[str], None]

    def largest(
        self, kind: Kind, batcher: Batcher, images: list[Image], guess: float
    ) -> LargestRate:
        step = self.camera_rate if kind == "cameras" else max(_RESOLUTION * guess, 0.1)
        return largest_rate(
            lambda rate, number: self.attempt(kind, batcher, images, rate, number), guess, step
        )

    def attempt(
        self, kind: Kind, batcher: Batcher, images: list[Image], rate: float, number: int
    ) -> LoadResult:
        self.show(f"{kind}, {rate:.4g}/s, batches up to {batcher.largest_batch}")
        arrivals = schedule(kind, rate, self.seconds, self.seed + number, self.camera_rate)
        # Streams of cameras are opened here; that of the requests has the default contract.
        names = sorted({stream for _, stream in arrivals}) if kind == "cameras" else []
        for name in names:
            batcher.open_stream(name, contract="freshest")
        try:
            return run(batcher, images, arrivals, share=SHARE)
        finally:
            for name in names:
                batcher.close_stream(name)


def _images(image: str | Path | Image | None, seed: int) -> list[Image]:
    if image is None:
        import numpy as np

        return [np.random.default_rng(seed).integers(0, 256, _NOISE_SHAPE, np.uint8)]
    if not isinstance(image, str | Path):
        return [image]
    from rightbatch._serve.sources.pictures import load_picture, pictures_in

    files = pictures_in(Path(image)) if Path(image).exists() else ()
    if not files:
        raise UsageError(f"no picture found at {image}")
    try:
        return [load_picture(path) for path in files[:64]]
    except ImportError:
        raise MissingExtraError("Pillow", "serve") from None
    except Exception as error:
        raise UsageError(f"{image} cannot be read as a picture: {error}") from None
