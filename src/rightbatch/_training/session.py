"""Sessions of a `Workload`: steps of any batch size, as in a plain training loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count, islice, pairwise

import torch
from torch import nn

from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import synchronize
from rightbatch._errors import UsageError
from rightbatch._training.step import PlainStep, move_state
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.held_modules import check_optimizer, move_modules
from rightbatch._workload.lazy import materialize
from rightbatch._workload.loader import data_loader
from rightbatch._workload.modes import set_training
from rightbatch._workload.module_attributes import ModuleAttributes
from rightbatch._workload.order import drawn_indices, epoch_length
from rightbatch._workload.workload import Precision, StepSeconds, Workload
from rightbatch._workload.worst import (
    LAST_OF_FOUR,
    WorstExamples,
    check_items,
    smaller_last_batch,
)

_EMPTY_BATCHES = 100
"""Batches in a row that the collate may leave out, each being None."""


class WorkloadSession:
    """The `Session` of a workload: a plain PyTorch loop on the examples that need most memory."""

    def __init__(self, workload: Workload, device: str, *, seed: int = 0) -> None:
        self._workload = workload
        self._device = device
        self._seed = seed
        self._check(workload)
        materialize(workload)
        move_modules(workload, device)
        self._model = workload.model
        move_state(workload.optimizer, device)
        self._examples = WorstExamples(
            workload.data, workload.collate, workload.size, seed, drawn_indices(workload, seed)
        )
        check_items(workload.count, workload.collate, self._examples.largest)
        self._step = PlainStep(workload, device)
        self._attributes = ModuleAttributes(workload.model)
        self._size = 0
        self._batches: tuple[int, Iterator[Batch]] | None = None
        self._place = 0
        # The batch and the loss stay alive while the next batch is loaded, as in `for batch in
        # loader`, and are part of the peak.
        self._batch: Batch = None
        self._loss: torch.Tensor | None = None

    def _check(self, workload: Workload) -> None:
        check_optimizer(workload)

    @property
    def examples(self) -> int | None:
        if self._workload.order is not None:
            return epoch_length(self._workload, self._seed)
        return self._examples.total

    @property
    def varies(self) -> bool:
        return self._examples.sizes_differ

    @property
    def notes(self) -> Sequence[str]:
        note = self._examples.seen.note()
        return [note] if note else []

    def step(self, batch_size: int) -> None:
        self._begin(batch_size)
        set_training(self._model, True)
        self._batch = to_device(self._next(batch_size), self._device)
        try:
            self._gradient(self._step)
            self._step.update()
        except Exception as error:
            rest = smaller_last_batch(self.examples, batch_size)
            is_last = bool(rest) and self._place % 4 == LAST_OF_FOUR
            if is_last and not self._workload.drop_last and not is_out_of_memory(error):
                error.add_note(
                    f"in the epoch's last batch, of {rest} examples; drop_last=True in the "
                    "Workload leaves it out"
                )
            raise

    def timed_step(self, batch_size: int, precision: Precision | None = None) -> StepSeconds:
        w, step = self._workload, self._step
        if precision is not None:
            step = PlainStep(replace(w, precision=precision), self._device)
        device = torch.device(self._device)
        self._begin(batch_size)
        set_training(self._model, True)
        times = [time.perf_counter()]
        examples = self._examples
        batch = _present(
            (examples.batch(examples.typical(batch_size), w.collate) for _ in count()),
            batch_size,
        )
        times.append(time.perf_counter())
        self._batch = to_device(batch, self._device)
        self._gradient(step)
        synchronize(device)
        times.append(time.perf_counter())
        step.update()
        synchronize(device)
        times.append(time.perf_counter())
        return StepSeconds(*(stop - start for start, stop in pairwise(times)))

    def _begin(self, batch_size: int) -> None:
        """Forget what the model keeps of batches of another size, as a hidden state."""
        if self._size != batch_size:
            self._attributes.restore_tensors()
            self._size = batch_size

    def modules(self) -> Sequence[nn.Module]:
        return [self._model]

    def _gradient(self, step: PlainStep) -> None:
        self._workload.optimizer.zero_grad()
        self._loss = step.loss(self._model, self._batch)
        step.backward(self._loss)

    def evaluate(self, batch_size: int) -> int:
        w = self._workload
        self._begin(batch_size)
        examples = self._evaluation_examples
        batch = to_device(examples.batch(examples.worst(batch_size), w.collate), self._device)
        was_training = self._model.training
        set_training(self._model, False)
        self._step.evaluate(batch)
        set_training(self._model, was_training)
        return batch_size

    @cached_property
    def _evaluation_examples(self) -> WorstExamples:
        w = self._workload
        if w.evaluation_data is None:
            return self._examples
        return WorstExamples(w.evaluation_data, w.collate, None, self._seed)

    def close(self) -> None:
        self._batches = None  # stops the loader's workers

    def _next(self, batch_size: int) -> Batch:
        return _present(self._drawn(batch_size), batch_size)

    def _drawn(self, batch_size: int) -> Iterator[Batch]:
        for batch in self._loader(batch_size):
            self._place += 1
            yield batch

    def _loader(self, batch_size: int) -> Iterator[Batch]:
        """Return an endless iterator of batches; a new loader when the size changes."""
        if self._batches is None or self._batches[0] != batch_size:
            self._batches = None
            self._batch = self._loss = None
            self._place = 0
            _forget_compiled()
            w = self._workload
            loader = data_loader(
                self._examples.data,
                workers=w.workers,
                collate=w.collate,
                batch_sampler=_Batches(self._examples, batch_size, w.drop_last),
            )
            self._batches = (batch_size, iter(loader))
        return self._batches[1]


class InferenceSession(WorkloadSession):
    """A session without training: `evaluate` runs `predict`, or the model on the batch's inputs."""

    def _check(self, workload: Workload) -> None:
        """Nothing is trained."""

    def step(self, batch_size: int) -> None:
        raise UsageError("an inference session does not train")

    def evaluate(self, batch_size: int) -> int:
        self._begin(batch_size)
        set_training(self._model, False)
        self._batch = to_device(self._next(batch_size), self._device)
        self._output = self._step.infer(self._batch)
        return batch_size


def _present(batches: Iterator[Batch], batch_size: int) -> Batch:
    """Return the first batch that is not None; a collate may leave out all items of one.

    Raises:
        UsageError: if there is none among `_EMPTY_BATCHES`.
    """
    for batch in islice(batches, _EMPTY_BATCHES):
        if batch is not None:
            return batch
    raise UsageError(
        f"the collate returned None for {_EMPTY_BATCHES} batches of {batch_size} in a row; "
        "pass data with examples that can be read"
    )


class _Batches:
    """An endless batch sampler over the kinds of batches that an epoch has."""

    def __init__(self, examples: WorstExamples, batch_size: int, drop_last: bool) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return self._examples.sequence(self._batch_size, drop_last=self._drop_last)


def _forget_compiled() -> None:
    """Forget what torch.compile made for other sizes.

    A run has one size. The sizes of a search would reach the limit of recompilations, beyond which
    a model runs uncompiled, or fails if it is compiled as a full graph.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
