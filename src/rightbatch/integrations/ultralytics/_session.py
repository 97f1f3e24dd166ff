"""Sessions of Ultralytics' trainer, on the images that need the most memory."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from ultralytics.utils.torch_utils import autocast

from rightbatch._device.caches import synchronize
from rightbatch._errors import UsageError
from rightbatch._predict.recorder import Recorder, transfer_batch
from rightbatch._workload.workload import StepSeconds
from rightbatch._workload.worst import smaller_last_batch
from rightbatch.integrations.ultralytics._batches import with_objects
from rightbatch.integrations.ultralytics._isolation import data_untouched, no_trackers
from rightbatch.integrations.ultralytics._rectangles import (
    is_rectangular,
    pad_to_largest,
    pad_to_square,
    random_batch,
    shapes_kept,
)
from rightbatch.integrations.ultralytics._setup import set_up_trainer
from rightbatch.integrations.ultralytics._step import UltralyticsStep, largest_multi_scale

_MOSAIC = 4  # images per mosaic, whose objects add up
_MIXED = 2  # images that mixup and cutmix make one of
_PASTED = 2  # times the objects of an image, at most, after copy_paste
_AUTO_UPDATES = 10_000  # Ultralytics' `optimizer=auto` is another one for more updates


class UltralyticsSession:
    """The `Session` of Ultralytics' trainer, set up as for `train`."""

    def __init__(
        self, overrides: dict[str, Any], live: bytes | None, device: str, *, inference: bool
    ) -> None:
        self._inference = inference
        self._steps = 0
        self._folder = tempfile.mkdtemp(prefix="rightbatch-")
        self._isolated = ExitStack()
        self._isolated.callback(shutil.rmtree, self._folder, ignore_errors=True)
        try:
            for guard in (data_untouched(), no_trackers(), shapes_kept()):
                self._isolated.enter_context(guard)
            trainer, self._val_factor = set_up_trainer(overrides, live, device, self._folder)
        except BaseException:
            self._isolated.close()
            raise
        self._trainer = trainer
        self._step = UltralyticsStep(trainer)
        self._train_data = trainer.train_loader.dataset
        self._val_data = trainer.test_loader.dataset
        args = trainer.args
        self._overlap = bool(getattr(args, "overlap_mask", True))
        self._is_auto = str(overrides.get("optimizer", "auto")).lower() == "auto"
        objects = [len(label["cls"]) for label in getattr(self._train_data, "labels", [])]
        self._by_objects = sorted(range(len(objects)), key=lambda i: -objects[i])
        self._most_objects = max(objects, default=0)
        if getattr(self._train_data, "augment", False) and not is_rectangular(self._train_data):
            self._most_objects *= _MOSAIC if args.mosaic > 0 else 1
            self._most_objects *= _PASTED if args.copy_paste > 0 and self._has_outlines else 1
            self._most_objects *= _MIXED if args.mixup > 0 or args.cutmix > 0 else 1

    @property
    def examples(self) -> int | None:
        return len(self._val_data if self._inference else self._train_data)

    @property
    def _has_outlines(self) -> bool:
        """Whether objects have outlines, without which copy_paste does nothing."""
        labels = getattr(self._train_data, "labels", [])
        return any(len(label.get("segments", ())) for label in labels)

    @property
    def varies(self) -> bool:
        return False  # all images have one size and the largest number of objects

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def step(self, batch_size: int) -> None:
        trainer = self._trainer
        self._set_batch(batch_size)
        self._fill_buffer(batch_size)
        trainer._model_train()
        self._steps += 1
        rest = smaller_last_batch(len(self._train_data), batch_size)
        images = rest if rest and self._steps % 3 == 0 else batch_size
        self._batch = transfer_batch(lambda: self._worst_training_batch(images))
        self._gradient()
        self._update(batch_size)

    def timed_step(self, batch_size: int, precision: str | None = None) -> StepSeconds:
        trainer = self._trainer
        if precision is not None:
            raise UsageError("Ultralytics sets its own mixed precision: use amp=True or amp=False")
        self._set_batch(batch_size)
        trainer._model_train()
        times = [time.perf_counter()]
        data = self._train_data
        if is_rectangular(data):
            chosen = random_batch(data, batch_size)
        else:
            chosen = random.choices(range(len(data)), k=batch_size)
        self._batch = self._collated(trainer.train_loader, chosen)
        for do in (self._gradient, lambda: self._update(batch_size)):
            times.append(time.perf_counter())
            do()
            synchronize(trainer.device)
        times.append(time.perf_counter())
        return StepSeconds(*(stop - start for start, stop in pairwise(times)))

    def _set_batch(self, batch_size: int) -> None:
        """Set the batch size, and the optimizer that `optimizer=auto` chooses for it."""
        trainer = self._trainer
        trainer.batch_size = trainer.args.batch = batch_size
        if not self._is_auto or Recorder.current is not None:
            return
        per_epoch = math.ceil(len(self._train_data) / max(batch_size, trainer.args.nbs))
        updates = per_epoch * trainer.epochs
        if (updates > _AUTO_UPDATES) != (type(trainer.optimizer).__name__ == "MuSGD"):
            trainer.optimizer = trainer.build_optimizer(
                trainer.model, name="auto", lr=trainer.args.lr0, iterations=updates
            )
            trainer.scheduler = None  # it would keep the other optimizer's state

    def _gradient(self) -> None:
        with largest_multi_scale():
            self._batch = self._step.prepare(self._batch)
            self._loss = self._step.loss(self._batch)
        self._step.backward(self._loss)

    def _update(self, batch_size: int) -> None:
        trainer = self._trainer
        self._step.update()
        if batch_size < trainer.args.nbs:
            # With accumulation, gradients exist already during the next forward pass.
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

    def evaluate(self, batch_size: int) -> int:
        trainer = self._trainer
        if self._inference:
            self._predict(transfer_batch(lambda: self._prediction_batch(batch_size)))
            return batch_size
        # A batch of Ultralytics' loader is at most the data set.
        count = min(self._val_factor * batch_size, len(self._val_data))
        trainer.epoch = trainer.start_epoch
        if not getattr(trainer, "loss_items", None):
            trainer.loss_items = self._losses()  # no step has set their names yet
        batch = transfer_batch(lambda: self._validation_batch(count))
        trainer.validator.dataloader = _OneBatch(batch, self._val_data)
        with torch.inference_mode():
            trainer.validator(trainer)
        return count

    def modules(self) -> list[torch.nn.Module]:
        """Return the model and the average of its weights, which stay on the device."""
        return [self._trainer.model, self._trainer.ema.ema]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._trainer.optimizer
        return optimizer

    @contextmanager
    def as_on_cuda(self) -> Iterator[None]:
        """Use mixed precision as on CUDA, without Ultralytics' check of the GPU."""
        trainer = self._trainer
        kept, trainer.amp = trainer.amp, trainer.args.amp not in (False, "fp32")
        self._step.is_as_on_cuda = True
        try:
            yield
        finally:
            trainer.amp = kept
            self._step.is_as_on_cuda = False

    def _predict(self, batch: dict[str, Any]) -> None:
        """Run a prediction with postprocessing, as in validation without loss and metrics."""
        trainer, validator = self._trainer, self._trainer.validator
        model = trainer.ema.ema.float().eval()
        validator.device, validator.data = trainer.device, trainer.data
        validator.dataloader = _OneBatch(batch, self._val_data)
        validator.init_metrics(model)
        with torch.inference_mode(), autocast(trainer.amp, device=trainer.device.type):
            images = validator.preprocess(batch)["img"]
            self._output = validator.postprocess(model(images))

    def _losses(self) -> dict[str, Any]:
        """Return the loss items of one image by name; restores the model's mode."""
        trainer = self._trainer
        was_training = trainer.model.training
        trainer.model.eval()
        batch = trainer.preprocess_batch(self._validation_batch(1))
        with torch.inference_mode():
            losses: dict[str, Any] = trainer.model.loss(batch)[1]
        trainer.model.train(was_training)
        return losses

    def close(self) -> None:
        self._isolated.close()

    def _worst_training_batch(self, batch_size: int) -> dict[str, Any]:
        data = self._train_data
        if is_rectangular(data):
            pad_to_largest(data)
        ordered = self._by_objects or range(len(data))
        chosen = [ordered[i % len(ordered)] for i in range(batch_size)]
        batch = self._collated(self._trainer.train_loader, chosen)
        if "batch_idx" in batch:
            batch = with_objects(batch, batch_size, self._most_objects, overlap=self._overlap)
        return batch

    def _validation_batch(self, batch_size: int) -> dict[str, Any]:
        if is_rectangular(self._val_data):
            # A small validation set ends the growth of its batch; padded by half a stride it would
            # be the peak of the small sizes that are followed, which then is not linear.
            pad = pad_to_largest if Recorder.current is None else pad_to_square
            pad(self._val_data)
        return self._first_images(batch_size)

    def _prediction_batch(self, batch_size: int) -> dict[str, Any]:
        if is_rectangular(self._val_data):
            pad_to_square(self._val_data)
        return self._first_images(batch_size)

    def _first_images(self, batch_size: int) -> dict[str, Any]:
        chosen = [i % len(self._val_data) for i in range(batch_size)]
        return self._collated(self._trainer.test_loader, chosen)

    @staticmethod
    def _collated(loader: Any, chosen: list[int]) -> dict[str, Any]:
        batch: dict[str, Any] = loader.collate_fn([loader.dataset[index] for index in chosen])
        return batch

    def _fill_buffer(self, batch_size: int) -> None:
        """Fill the mosaic's buffer as after some epochs: 8 batches, at most 1000 images.

        It is in CPU memory, so it only matters there.
        """
        data = self._train_data
        if self._trainer.device.type != "cpu" or not hasattr(data, "max_buffer_length"):
            return
        data.batch_size = batch_size
        data.max_buffer_length = min(len(data), batch_size * 8, 1000) if data.augment else 0
        for index in range(min(data.max_buffer_length, len(data))):
            if len(data.buffer) >= data.max_buffer_length - 1:
                break
            data.load_image(index)


class _OneBatch:
    """A loader with one batch, for Ultralytics' validator."""

    def __init__(self, batch: dict[str, Any], data: Any) -> None:
        self._batch = batch
        self.dataset = data
        self.batch_size = len(batch["img"])
        self.sampler = range(self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield self._batch

    def __len__(self) -> int:
        return 1
