"""Sessions of a `Workload`: steps of any batch size, as in a plain training loop."""

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
from rightbatch._training.step import PlainStep, move_state
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.precision import autocast
from rightbatch._workload.workload import Precision, StepSeconds, Workload
from rightbatch._workload.worst import WorstExamples

_LABELS = {"label", "labels", "label_ids", "target", "targets", "y"}


class WorkloadSession:
    """The `Session` of a workload: a plain PyTorch loop on the examples that need most memory."""

    def __init__(self, workload: Workload, device: str, *, seed: int = 0) -> None:
        self._workload = workload
        self._device = device
        self._seed = seed
        self._model = workload.model.to(device)
        move_state(workload.optimizer, device)
        self._examples = WorstExamples(workload.data, workload.collate, workload.size, seed)
        self._step = PlainStep(workload, device)
        self._batches: tuple[int, Iterator[Batch]] | None = None
        # The batch and the loss stay alive while the next batch is loaded, as in `for batch in
        # loader`, and are part of the peak.
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
        self._gradient(self._step)
        self._step.update()

    def timed_step(self, batch_size: int, precision: Precision | None = None) -> StepSeconds:
        w, step = self._workload, self._step
        if precision is not None:
            step = PlainStep(replace(w, precision=precision), self._device)
        device = torch.device(self._device)
        self._model.train()
        times = [time.perf_counter()]
        examples = self._examples
        batch = w.collate([examples.data[index] for index in examples.typical(batch_size)])
        times.append(time.perf_counter())
        self._batch = to_device(batch, self._device)
        self._gradient(step)
        synchronize(device)
        times.append(time.perf_counter())
        step.update()
        synchronize(device)
        times.append(time.perf_counter())
        return StepSeconds(*(stop - start for start, stop in pairwise(times)))

    def modules(self) -> Sequence[nn.Module]:
        return [self._model]

    def _gradient(self, step: PlainStep) -> None:
        self._workload.optimizer.zero_grad()
        self._loss = step.loss(self._model, self._batch)
        step.backward(self._loss)

    def evaluate(self, batch_size: int) -> int:
        w = self._workload
        examples = self._examples
        if w.evaluation_data is not None:
            examples = WorstExamples(w.evaluation_data, w.collate, None, self._seed)
        chosen = examples.worst(batch_size)
        batch = to_device(w.collate([examples.data[index] for index in chosen]), self._device)
        was_training = self._model.training
        self._model.eval()
        self._step.evaluate(batch)
        self._model.train(was_training)
        return batch_size

    def close(self) -> None:
        self._batches = None  # stops the loader's workers

    def _loader(self, batch_size: int) -> Iterator[Batch]:
        """Return an endless iterator of batches; a new loader when the size changes."""
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
    """A session without training: `evaluate` runs `predict`, or the model on the batch's inputs."""

    def step(self, batch_size: int) -> None:
        raise UsageError("an inference session does not train")

    def evaluate(self, batch_size: int) -> int:
        w = self._workload
        self._model.eval()
        self._batch = to_device(next(self._loader(batch_size)), self._device)
        if w.predict is not None:
            self._output = self._step.evaluate(self._batch)
        else:
            with torch.no_grad(), autocast(w, self._device):
                self._output = _forward(self._model, self._batch)
        return batch_size


class _Batches:
    """An endless batch sampler over the kinds of batches that an epoch has."""

    def __init__(self, examples: WorstExamples, batch_size: int, drop_last: bool) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return self._examples.sequence(self._batch_size, drop_last=self._drop_last)


def _forward(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch's inputs: the tensor, the first field, or all but the labels."""
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key not in _LABELS})
    if isinstance(batch, list | tuple):
        return model(batch[0])
    return model(batch)
