"""Sessions of Ultralytics' trainer, on the images that need the most memory."""

from __future__ import annotations

import pickle
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.utils.torch_utils import autocast

from rightbatch._device.caches import synchronize
from rightbatch._errors import UsageError
from rightbatch._predict.recorder import transfer_batch
from rightbatch._workload.workload import StepSeconds
from rightbatch._workload.worst import smaller_last_batch
from rightbatch.integrations.ultralytics._isolation import data_untouched, no_trackers
from rightbatch.integrations.ultralytics._step import UltralyticsStep, largest_multi_scale

_MOSAIC = 4  # images per mosaic, whose objects add up
_FIRST = 2  # batch size for the setup; BatchNorm may not accept 1


class UltralyticsSession:
    """The `Session` of Ultralytics' trainer, set up as for `train`."""

    def __init__(
        self, overrides: dict[str, Any], live: bytes | None, device: str, *, inference: bool
    ) -> None:
        self._inference = inference
        self._steps = 0
        self._folder = tempfile.mkdtemp(prefix="rightbatch-")
        self._isolated = ExitStack()
        self._isolated.enter_context(data_untouched())
        self._isolated.enter_context(no_trackers())
        self._trainer = _set_up(overrides, live, device, self._folder)
        self._step = UltralyticsStep(self._trainer)
        self._train_data = self._trainer.train_loader.dataset
        self._val_data = self._trainer.test_loader.dataset
        # Square images: rectangular ones are never larger.
        self._val_data.rect = False
        # Ultralytics validates with twice the batch, except in tasks with large outputs.
        is_doubled = self._trainer.test_loader.batch_size > _FIRST or len(self._val_data) <= _FIRST
        self._val_factor = 2 if is_doubled else 1
        objects = [len(label["cls"]) for label in getattr(self._train_data, "labels", [])]
        self._by_objects = sorted(range(len(objects)), key=lambda i: -objects[i])
        mosaic = self._trainer.args.mosaic > 0 and self._train_data.augment
        self._most_objects = max(objects, default=0) * (_MOSAIC if mosaic else 1)

    @property
    def examples(self) -> int | None:
        return len(self._val_data if self._inference else self._train_data)

    @property
    def varies(self) -> bool:
        return False  # all images have one size and the largest number of objects

    def step(self, batch_size: int) -> None:
        trainer = self._trainer
        trainer.batch_size = trainer.args.batch = batch_size
        self._fill_buffer(batch_size)
        trainer._model_train()
        self._steps += 1
        rest = smaller_last_batch(len(self._train_data), batch_size)
        images = rest if rest and self._steps % 3 == 0 else batch_size
        self._batch = transfer_batch(lambda: self._worst_batch(self._train_data, images))
        self._gradient()
        self._update(batch_size)

    def timed_step(self, batch_size: int, precision: str | None = None) -> StepSeconds:
        trainer = self._trainer
        if precision is not None:
            raise UsageError("Ultralytics sets its own mixed precision: use amp=True or amp=False")
        trainer.batch_size = trainer.args.batch = batch_size
        trainer._model_train()
        times = [time.perf_counter()]
        data = self._train_data
        chosen = random.choices(range(len(data)), k=batch_size)
        self._batch = data.collate_fn([data[index] for index in chosen])
        for do in (self._gradient, lambda: self._update(batch_size)):
            times.append(time.perf_counter())
            do()
            synchronize(trainer.device)
        times.append(time.perf_counter())
        return StepSeconds(*(stop - start for start, stop in pairwise(times)))

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
            self._predict(transfer_batch(lambda: self._worst_batch(self._val_data, batch_size)))
            return batch_size
        # A batch of Ultralytics' loader is at most the data set.
        count = min(self._val_factor * batch_size, len(self._val_data))
        trainer.epoch = trainer.start_epoch
        if not getattr(trainer, "loss_items", None):
            trainer.loss_items = self._losses()  # no step has set their names yet
        batch = transfer_batch(lambda: self._worst_batch(self._val_data, count))
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
        try:
            yield
        finally:
            trainer.amp = kept

    def _predict(self, batch: dict[str, Any]) -> None:
        """Run a prediction with postprocessing, as in validation without loss and metrics."""
        trainer, validator = self._trainer, self._trainer.validator
        model = trainer.ema.ema.float().eval()
        validator.device, validator.data = trainer.device, trainer.data
        validator.init_metrics(model)
        with torch.inference_mode(), autocast(trainer.amp, device=trainer.device.type):
            images = validator.preprocess(batch)["img"]
            self._output = validator.postprocess(model(images))

    def _losses(self) -> dict[str, Any]:
        """Return the loss items of one image by name; restores the model's mode."""
        trainer = self._trainer
        was_training = trainer.model.training
        trainer.model.eval()
        batch = trainer.preprocess_batch(self._worst_batch(self._val_data, 1))
        with torch.inference_mode():
            losses: dict[str, Any] = trainer.model.loss(batch)[1]
        trainer.model.train(was_training)
        return losses

    def close(self) -> None:
        self._isolated.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _worst_batch(self, data: Any, batch_size: int) -> dict[str, Any]:
        if data is self._train_data and self._by_objects:
            ordered = self._by_objects
        else:
            ordered = list(range(len(data)))
        worst = [ordered[i % len(ordered)] for i in range(batch_size)]
        batch: dict[str, Any] = data.collate_fn([data[i] for i in worst])
        if data is self._train_data and "batch_idx" in batch:
            batch = with_objects(batch, batch_size, self._most_objects)
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


def with_objects(batch: dict[str, Any], images: int, objects: int) -> dict[str, Any]:
    """Return the batch with `objects` labels per image, by repeating the existing ones.

    How many objects remain after a mosaic is random; an epoch may need memory for the largest
    number. Fields with one row per object are repeated, the others stay.
    """
    owner = batch["batch_idx"].long()
    total = len(owner)
    if total == 0 or objects == 0:
        return batch
    rows = []
    for image in range(images):
        own = torch.nonzero(owner == image).flatten()
        own = own if len(own) else torch.zeros(1, dtype=torch.long)
        rows.append(own[torch.arange(max(objects, len(own))) % len(own)])
    chosen = torch.cat(rows)
    repeated = {
        key: value[chosen]
        for key, value in batch.items()
        if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == total
        if key not in ("img", "im_file", "masks")
    }
    counts = torch.tensor([len(row) for row in rows])
    repeated["batch_idx"] = torch.arange(images).repeat_interleave(counts).to(batch["batch_idx"])
    return batch | repeated


class _OneBatch:
    """A loader with one batch, for Ultralytics' validator."""

    def __init__(self, batch: dict[str, Any], data: Any) -> None:
        self._batch = batch
        self.dataset = data
        self.batch_size = len(batch["img"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield self._batch

    def __len__(self) -> int:
        return 1


def _set_up(overrides: dict[str, Any], live: bytes | None, device: str, folder: str) -> Any:
    """A trainer that is ready to train, and writes into `folder` only."""
    overrides = overrides | {
        "project": folder,
        "name": "probe",
        "exist_ok": True,
        "save": False,
        "plots": False,
        "batch": _FIRST,
        "device": device.removeprefix("cuda:"),
        "mode": "train",
        "verbose": False,
    }
    if overrides.get("cache") == "disk":
        overrides["cache"] = False  # would write next to the images
    if live is not None:
        trainer_class, model = pickle.loads(live)
    else:
        yolo = YOLO(overrides["model"])
        overrides |= {"task": yolo.task, "model": yolo.overrides["model"]}
        trainer_class = yolo.task_map[yolo.task]["trainer"]
        model = yolo.model if yolo.ckpt else None
    trainer = trainer_class(overrides=overrides, _callbacks=defaultdict(list))
    if model is not None:
        trainer.model = model
    try:
        trainer._setup_train()
    except ValueError as error:
        if "BatchNorm" not in str(error):
            raise
        raise UsageError(str(error)) from error
    trainer._oom_retries = 0
    return trainer
