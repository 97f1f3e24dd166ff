"""Steps of a `Workload`: the same loop that a training script has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from rightbatch._device.caches import synchronize
from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.precision import autocast, scaler
from rightbatch._workload.workload import Precision, Session, StepSeconds, Workload
from rightbatch._workload.worst import WorstExamples

_LABELS = {"label", "labels", "label_ids", "target", "targets", "y"}


def open_session(factory: Any, device: str, *, seed: int, inference: bool) -> Session:
    """The session that `factory` describes: its own, or that of the `Workload` it returns.

    Raises:
        UsageError: if the factory returns something else.
    """
    own = getattr(factory, "session", None)
    if own is not None:
        return own(device, inference)  # type: ignore[no-any-return]
    workload = factory()
    if not isinstance(workload, Workload):
        raise UsageError(
            f"the factory returned {type(workload).__name__}, expected a rightbatch.Workload"
        )
    kind = InferenceSession if inference else WorkloadSession
    return kind(workload, device, seed=seed)


class WorkloadSession:
    """The default `Session`: the plain PyTorch loop on the worst examples."""

    def __init__(self, workload: Workload, device: str, *, seed: int = 0) -> None:
        self._workload = workload
        self._device = device
        self._seed = seed
        self._model = workload.model.to(device)
        move_state(workload.optimizer, device)
        self._examples = WorstExamples(workload.data, workload.collate, workload.size, seed)
        self._scaler = scaler(workload, device)
        self._batches: tuple[int, Iterator[Batch]] | None = None
        # What is held from one step to the next is part of the peak: the batch and the loss stay
        # alive while the next batch is loaded, as they do in `for batch in loader`.
        self._batch: Batch = None
        self._loss: torch.Tensor | None = None

    @property
    def examples(self) -> int | None:
        return self._examples.total

    @property
    def varies(self) -> bool:
        return self._examples.sizes_differ

    def step(self, batch_size: int) -> None:
        self._model.train()
        self._batch = to_device(next(self._loader(batch_size)), self._device)
        self._gradient(self._workload)
        self._update()

    def timed_step(self, batch_size: int, precision: Precision | None = None) -> StepSeconds:
        w = self._workload if precision is None else replace(self._workload, precision=precision)
        device = torch.device(self._device)
        self._model.train()
        times = [time.perf_counter()]
        examples = self._examples
        batch = w.collate([examples.data[index] for index in examples.typical(batch_size)])
        times.append(time.perf_counter())
        self._batch = to_device(batch, self._device)
        self._gradient(w)
        synchronize(device)
        times.append(time.perf_counter())
        self._update()
        synchronize(device)
        times.append(time.perf_counter())
        return StepSeconds(*(stop - start for start, stop in pairwise(times)))

    def modules(self) -> Sequence[nn.Module]:
        return [self._model]

    def _gradient(self, w: Workload) -> None:
        w.optimizer.zero_grad()
        with autocast(w, self._device):
            self._loss = w.loss(self._model, self._batch)
        if not isinstance(self._loss, torch.Tensor) or self._loss.numel() != 1:
            raise UsageError(
                f"Workload.loss returns a scalar tensor, not {type(self._loss).__name__}"
                + (f" of shape {tuple(self._loss.shape)}" if hasattr(self._loss, "shape") else "")
            )
        self._scaler.scale(self._loss).backward()

    def _update(self) -> None:
        w = self._workload
        if w.clip_norm is not None:
            self._scaler.unscale_(w.optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), w.clip_norm)
        self._scaler.step(w.optimizer)
        self._scaler.update()

    def evaluate(self, batch_size: int) -> int:
        w = self._workload
        examples = self._examples
        if w.evaluation_data is not None:
            examples = WorstExamples(w.evaluation_data, w.collate, None, self._seed)
        chosen = examples.worst(batch_size)
        batch = to_device(w.collate([examples.data[index] for index in chosen]), self._device)
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad(), autocast(self._workload, self._device):
            if w.predict is not None:
                w.predict(self._model, batch)
            else:
                w.loss(self._model, batch)
        self._model.train(was_training)
        return batch_size

    def close(self) -> None:
        self._batches = None  # stops the loader's workers

    def _loader(self, batch_size: int) -> Iterator[Batch]:
        """Batches for ever; a new loader when the size changes."""
        if self._batches is None or self._batches[0] != batch_size:
            self._batches = None
            self._batch = self._loss = None
            w = self._workload
            loader: DataLoader[Any] = DataLoader(
                self._examples.data,
                batch_sampler=_Batches(self._examples, batch_size, w.drop_last),
                num_workers=w.workers,
                collate_fn=w.collate,
            )
            self._batches = (batch_size, iter(loader))
        return self._batches[1]


class InferenceSession(WorkloadSession):
    """The same without training: `evaluate` runs `predict`, or the model on the batch's inputs."""

    def step(self, batch_size: int) -> None:
        raise UsageError("an inference session does not train")

    def evaluate(self, batch_size: int) -> int:
        w = self._workload
        self._model.eval()
        self._batch = to_device(next(self._loader(batch_size)), self._device)
        with torch.no_grad(), autocast(self._workload, self._device):
            if w.predict is not None:
                self._output = w.predict(self._model, self._batch)
            else:
                self._output = _forward(self._model, self._batch)
        return batch_size


class _Batches:
    """A batch sampler without an end, over the kinds of batches that an epoch has."""

    def __init__(self, examples: WorstExamples, batch_size: int, drop_last: bool) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return self._examples.sequence(self._batch_size, drop_last=self._drop_last)


def move_state(optimizer: torch.optim.Optimizer, device: str) -> None:
    """Move what the optimizer holds already; its parameters were moved with the model."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and key != "step":
                state[key] = value.to(device)


def _forward(model: nn.Module, batch: Batch) -> Any:
    """The model on a batch's inputs: the tensor, a tuple's first field, a mapping's non-labels."""
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key not in _LABELS})
    if isinstance(batch, list | tuple):
        return model(batch[0])
    return model(batch)
