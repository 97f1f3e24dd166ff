"""Ultralytics' own training, watched update by update; for the process of a study's run."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import autocast

from rightbatch._elastic import Event
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._noise import Part
from rightbatch._study.runs.framework import Betas
from rightbatch._study.runs.training import TooLargeError
from rightbatch._study.runs.watch import DivergedError
from rightbatch._training.distributed import Processes
from rightbatch._training.loop import Standing
from rightbatch._training.scaling import scale_optimizer
from rightbatch._workload.workload import Workload
from rightbatch.integrations.ultralytics._elastic import ElasticYolo
from rightbatch.integrations.ultralytics._factory import logged_name
from rightbatch.integrations.ultralytics._session import register_no_trackers, write_no_caches

if TYPE_CHECKING:
    from rightbatch.integrations.ultralytics._factory import YoloFactory

_ITS_OWN = "the study has batches, base_batch, epochs, target, budget, seeds and device for that"
_UNKEPT = "a run of a study keeps its measurements and no files"
REFUSED = {
    **dict.fromkeys(("batch", "nbs", "epochs", "time", "patience", "seed", "device"), _ITS_OWN),
    **dict.fromkeys(("save", "save_period", "plots", "resume", "project", "name"), _UNKEPT),
    "val": "it is validated whenever that is cheap",
    "cfg": "name its arguments one by one",
    "compile": "a compiled step cannot be run in parts",
}
"""Arguments of `YOLO.train` that are not the user's here, and why."""
RATES = {"sgd": 0.01, "musgd": 0.01, "adam": 0.001, "adamw": 0.001, "adamax": 0.001}
RATES |= {"nadam": 0.001, "radam": 0.001}
"""Optimizers whose rate a rule is known for, and the rate that Ultralytics names for each."""
_IN_MEMORY = ("buffer", "ims", "im_hw0", "im_hw")
"""Images that a data set holds; mosaics are made of those in the buffer."""


class _Over(Exception):
    """Ends Ultralytics' training where we have what we want."""


@dataclass(frozen=True)
class _Update:
    """What a `Watch` asks of an update."""

    mean_loss: Tensor


class YoloLoop:
    """Trains with an update every `batch_size` images; the warm-up keeps to that, too.

    Ultralytics' own accumulation is not used: parts of a batch are run by `ElasticYolo`. The
    learning rate, that of the biases at first, and the average of the weights that is validated go
    with the batch size. Nothing is kept on disk.
    """

    def __init__(
        self,
        factory: YoloFactory,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        epochs: int,
        device: str,
        seed: int,
        settings: Mapping[str, Any],
        factors: Callable[[Betas], tuple[float, float]],
        watch: Any,
        on_event: Callable[[Event], object],
    ) -> None:
        self._model = factory.overrides["model"]
        self._arguments = arguments_of(factory.overrides, settings) | {
            "batch": batch_size,
            "nbs": batch_size,
            "epochs": epochs,
            "device": device.removeprefix("cuda:"),
            "seed": seed,
            "val": False,  # the watch says when
            "save": False,
            "plots": False,
            "verbose": False,
            "name": "run",
        }
        self._batch_size, self._epochs, self._seed = batch_size, epochs, seed
        self._micro_batch_size = micro_batch_size
        self._factors, self._watch, self._on_event = factors, watch, on_event
        self._trainer: Any = None
        self._elastic: ElasticYolo | None = None
        self._began, self._batches = 0.0, 0
        self.examples = 0
        self.learning_rate: float | None = None
        self.standing = Standing(batch_size)
        self.processes = Processes(torch.device(device))
        self.device = self.processes.device

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self._trainer.model
        return model

    @property
    def micro_batch_size(self) -> int | None:
        """Images that are run at once."""
        return self._elastic.micro_batch_size if self._elastic else None

    @property
    def step(self) -> ElasticYolo | None:
        return self._elastic

    @property
    def population(self) -> int | None:
        """Of examples that are the same each time; None with augmentation."""
        data = self._trainer.train_loader.dataset
        return None if getattr(data, "augment", True) else self.examples

    def run(self) -> Standing:
        """Train to the end.

        Raises:
            TooLargeError: if the data set does not fill a batch, or leaves one image for the last.
            NothingFitsError: if memory runs out where parts do not help.
            DivergedError: if the loss of an epoch ends as no number.
        """
        register_no_trackers()
        write_no_caches()
        model = YOLO(self._model)
        for event, callback in (
            ("on_pretrain_routine_start", self._prepare),
            ("on_train_start", self._start),
            ("on_train_epoch_start", self._before_epoch),
            ("on_train_batch_end", self._after_batch),
            ("on_train_epoch_end", self._after_epoch),
        ):
            model.add_callback(event, callback)
        with tempfile.TemporaryDirectory(
            prefix="rightbatch-", ignore_cleanup_errors=True
        ) as folder:
            try:
                model.train(**self._arguments, project=folder)
            except _Over:
                pass
            except ValueError as error:
                if "BatchNorm" not in str(error):
                    raise
                raise TooLargeError(str(error)) from error
            finally:
                if self._elastic is not None:
                    self._elastic.close()
        return self.standing

    def parts(self, most: int | None = None) -> Iterator[Part]:
        """Micro-batches for the noise scale; the data set is as before in the end."""
        trainer = self._trainer
        data = trainer.train_loader.dataset
        size = min(self.micro_batch_size or 1, most or self._batch_size)
        size = min(max(size, 2), self.examples)  # BatchNorm at 32 pixels has one value an image
        generator = random.Random(self._seed + self.standing.steps)
        order = generator.sample(range(self.examples), self.examples)
        with _as_before(data):
            for start in range(0, len(order) - size + 1, size):
                items = [data[index] for index in order[start : start + size]]
                loss = partial(self._loss, self.workload.collate(items))
                yield loss, size, size * trainer.scaler.get_scale()

    def ran_out(self, reason: str) -> None:
        """Memory ran out in a validation, and it was survived."""
        self.standing.out_of_memory_events += 1
        size = self.micro_batch_size or 0
        self._on_event(Event("out_of_memory", self.standing.steps, reason, size, "evaluation"))

    def _happened(self, event: Event) -> None:
        self.standing.out_of_memory_events += event.kind in ("out_of_memory", "rolled_back")
        self._on_event(event)

    def _prepare(self, trainer: Any) -> None:
        micro = self._micro_batch_size and min(self._micro_batch_size, self._batch_size)
        self._trainer = trainer
        self._elastic = ElasticYolo(trainer, micro_batch_size=micro, on_event=self._happened)

    def _start(self, trainer: Any) -> None:
        data = trainer.train_loader.dataset
        self.examples = len(data)
        if self.examples < self._batch_size:
            raise TooLargeError(
                f"the data set has {self.examples} images, fewer than a batch of "
                f"{self._batch_size}: leave that size out of --batches"
            )
        assert self._elastic is not None
        batch_factor, rate = self._factors(trainer.optimizer.param_groups[0].get("betas"))
        scale_optimizer(trainer.optimizer, batch_factor, rate, trainer.scheduler)
        trainer.args.warmup_bias_lr *= rate
        trainer.ema.decay = averaging(trainer.ema.decay, batch_factor)
        self.learning_rate = float(trainer.args.lr0) * rate
        self.device = trainer.device
        self.workload = Workload(
            model=trainer.model,
            loss=lambda model, batch: self._loss(batch),
            optimizer=trainer.optimizer,
            data=data,
            collate=trainer.train_loader.collate_fn,
            evaluate=self._validate,
        )

    def _before_epoch(self, trainer: Any) -> None:
        if getattr(trainer, "_oom_retries", 0):  # with half of the batch, from the epoch's start
            raise NothingFitsError(
                f"memory ran out outside of a step, with a batch of {self._batch_size}",
                error_type="OutOfMemoryError",
                error_message="Ultralytics would go on with half of it",
            )
        self._batches = 0
        self._began = time.perf_counter()

    def _after_batch(self, trainer: Any) -> None:
        at = self.standing
        seconds = time.perf_counter() - self._began
        at.steps += 1
        at.examples += min(self._batch_size, self.examples - self._batches * self._batch_size)
        self._batches += 1
        # The first step starts the device: it counts as the second one.
        at.seconds += seconds * (0, 0, 2, 1)[min(at.steps, 3)]
        self._watch.after_step(self, _Update(_total(trainer.loss_items)))
        if trainer.args.freeze:
            trainer._model_train()  # an evaluation ends with all layers in training
        if self._watch.is_over:
            raise _Over
        self._began = time.perf_counter()

    def _after_epoch(self, trainer: Any) -> None:
        at = self.standing
        if not torch.isfinite(trainer.loss).all():
            raise DivergedError(f"the loss is {float(trainer.loss)} at the end of an epoch")
        found = self._watch.after_epoch(self)
        at.metrics = {"loss": float(_total(trainer.tloss)), **found}
        at.epoch += 1
        if self._watch.is_over or at.epoch == self._epochs:
            raise _Over

    def _validate(self, model: nn.Module) -> dict[str, float]:
        """Ultralytics' metrics and losses by the names that it logs them with, and the losses'
        sum."""
        trainer = self._trainer
        found, _ = trainer.validate()
        found = found | trainer.label_loss_items(trainer.tloss, prefix="train")
        losses = [float(value) for name, value in found.items() if name.startswith("val/")]
        values = {logged_name(name): float(value) for name, value in found.items()}
        return {"evaluation_loss": sum(losses), **values}

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        trainer = self._trainer
        assert self._elastic is not None
        amp = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
        with autocast(amp, device=trainer.device.type):
            return self._elastic.loss(trainer.preprocess_batch(batch))


def arguments_of(overrides: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For `YOLO.train`: what was asked for, with an optimizer and a rate that stay.

    Ultralytics' `optimizer=auto` chooses both by how many updates there will be. SGD and its rate
    are Ultralytics' own otherwise; Adam and its kin have no high rate for biases at first, as
    they have none in `auto`.

    Raises:
        UsageError: for what is the study's to decide.
    """
    arguments = {key: value for key, value in overrides.items() if key not in ("model", "nbs")}
    arguments |= settings
    for name in arguments:
        if name in REFUSED:
            raise UsageError(f"{name} cannot be set in a study: {REFUSED[name]}")
    optimizer = str(arguments.get("optimizer", "SGD"))
    if optimizer.lower() not in RATES:
        raise UsageError(
            f"optimizer is one of SGD, MuSGD, Adam, AdamW, Adamax, NAdam and RAdam in a study, not "
            f"{optimizer}: auto would take another one for another batch size, and no rule is "
            "known for others"
        )
    own = {"optimizer": optimizer, "lr0": RATES[optimizer.lower()]}
    if "adam" in optimizer.lower():
        own["warmup_bias_lr"] = 0.0
    return own | arguments


def averaging(decay: Callable[[float], float], batch_factor: float) -> Callable[[float], float]:
    """The decay of an average of the weights that holds as many examples as before.

    An update counts as `batch_factor` ones (Busbridge et al. 2023, arXiv 2307.13813).
    """
    return lambda updates: decay(updates * batch_factor) ** batch_factor


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([loss.detach().float().reshape(()) for loss in losses.values()]).sum()


@contextmanager
def _as_before(data: Any) -> Iterator[None]:
    """What is loaded inside leaves no trace in the images that the data set holds."""
    kept = {name: list(held) for name in _IN_MEMORY if (held := getattr(data, name, None))}
    try:
        yield
    finally:
        for name, held in kept.items():
            getattr(data, name)[:] = held
