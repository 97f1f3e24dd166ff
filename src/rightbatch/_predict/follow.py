"""Follow a workload's step without its memory, by running it on fake tensors and recording them.

Data items and collate are real for a few examples; the tensors of larger batches are shapes only
(`shaped_batch`). If a step needs values (a detection loss, a boolean mask), real tensors are used
instead, at batch sizes small enough to fit anywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError
from rightbatch._predict.build import BUILD_LIMIT, build, build_fake, parameter_bytes
from rightbatch._predict.cuda_semantics import cuda_semantics, sum_of
from rightbatch._predict.fake_checks import fake_checks_denied
from rightbatch._predict.fake_mode import FollowMode
from rightbatch._predict.known_values import KnownValues, fake_with_value
from rightbatch._predict.recorded_step import (
    OneBatch,
    in_order_of_moving,
    record_step,
    without_collecting,
)
from rightbatch._predict.recorder import Recorder
from rightbatch._predict.shaped_batch import (
    LARGER,
    MOST_COLLATED,
    grows_in_steps,
    shaped_batch,
)
from rightbatch._predict.sharding import free_gathered, shard, state_of
from rightbatch._predict.trace import Trace
from rightbatch._predict.unknown_values import SHARDED, UnknownValueError, as_refusal, cause
from rightbatch._predict.variant import (
    Variant,
    checkpointed,
    half_images,
    optimizer_as,
)
from rightbatch._workload.batch import Batch, count_examples, map_tensors
from rightbatch._workload.held_modules import check_optimizer, held_modules
from rightbatch._workload.lazy import materialize
from rightbatch._workload.module_attributes import ModuleAttributes
from rightbatch._workload.order import drawn_indices, epoch_length
from rightbatch._workload.workload import Workload
from rightbatch._workload.worst import WorstExamples, check_items

REAL_LIMIT = 2**30
"""Bytes of weights, gradients and optimizer state, up to which real tensors give unknown numbers;
in larger models they are assumed."""


class Follower:
    """Traces a workload's step at any batch size; runs in a process of its own.

    `how` is `fake`, or `real` if the step needs values; `notes` are for the user. `reuses_batch`
    says that all steps take the same batch on the device, as benchmarks do.

    Raises:
        UsageError: if the factory does not return a `Workload`, or it is not supported.
    """

    def __init__(
        self, factory: Callable[[], Any], *, seed: int = 0, reuses_batch: bool = False
    ) -> None:
        self._factory = factory
        self._seed = seed
        self._reuses_batch = reuses_batch
        self.is_followed = False
        self.how = "fake"
        self.notes: list[str] = []
        mode = FollowMode()
        self._mode: FollowMode | None = mode
        self._is_sharded = False
        self.workload = build_fake(factory, mode)

    @cached_property
    def _examples(self) -> WorstExamples:
        w = self.workload
        drawn = drawn_indices(w, self._seed)
        examples = WorstExamples(w.data, w.collate, w.size, self._seed, drawn)
        check_items(w.count, w.collate, examples.largest)
        return examples

    @cached_property
    def _evaluation_examples(self) -> WorstExamples | None:
        w = self.workload
        if w.evaluation_data is None:
            return None
        return WorstExamples(w.evaluation_data, w.collate, None, self._seed)

    @property
    def examples(self) -> int | None:
        """The examples in an epoch; None if unknown."""
        try:
            return epoch_length(self.workload, self._seed)
        except TypeError:
            return None

    @cached_property
    def batch_grows_in_steps(self) -> bool:
        """Whether the sizes of a few examples' batch say nothing about larger batches."""
        examples, collate = self._examples, self.workload.collate
        largest = examples.worst(LARGER)
        return grows_in_steps(lambda chosen: examples.batch(chosen, collate), largest)

    @property
    def can_fork(self) -> bool:
        """Whether no values are computed, so that forks of the process do not differ."""
        return self.how == "fake"

    @property
    def at_least(self) -> int:
        """The bytes that any step needs: parameters, gradients and optimizer state."""
        return parameter_bytes(self.workload)

    def traces(self, batch_sizes: Sequence[int], variant: Variant) -> list[Trace]:
        """Return a trace per batch size; use real tensors if fake ones fail.

        Raises:
            Exception: the workload's own error, if real tensors fail too.
        """
        try:
            traces = [self.trace(size, variant) for size in batch_sizes]
        except UsageError:
            raise
        except Exception as error:
            # After a success, a failure is due to the variant, which real tensors do not fix.
            if self.how == "real" or self.is_followed:
                raise
            if variant.sharding is not None:
                raise as_refusal(error, SHARDED) from error
            if self.at_least > BUILD_LIMIT:
                raise as_refusal(error) from error
            try:
                self.use_real_tensors(error)
                traces = [self.trace(size, variant) for size in batch_sizes]
            except Exception as failure:
                raise (as_refusal(error) if is_out_of_memory(failure) else failure) from error
        self.is_followed = True
        return traces

    def use_real_tensors(self, error: BaseException) -> None:
        """Follow real tensors from now on, because `error` was raised with fake ones."""
        self.how, self._mode = "real", None
        self.notes = [
            f"this step does not run on fake tensors ({cause(error)}); it was followed with real "
            "tensors at small batch sizes"
        ]
        self.workload = build(self._factory)
        materialize(self.workload)
        if self.workload.precision != "fp32":
            self.notes.append(
                "mixed precision with real tensors: some operators cast as on the CPU, which takes "
                "more memory than on CUDA"
            )
        gc.collect()

    def trace(self, batch_size: int, variant: Variant) -> Trace:
        """Record two training steps and an evaluation; for inference, two evaluations."""
        try:
            return self._trace(batch_size, variant)
        except (UnknownValueError, DataDependentOutputException, DynamicOutputShapeException):
            if self._mode is None or batch_size <= MOST_COLLATED:
                raise
            return self._trace(batch_size, variant, has_values=True)

    def _trace(self, batch_size: int, variant: Variant, *, has_values: bool = False) -> Trace:
        """With `has_values`, batches of any size are collated, for steps that read their values."""
        if not variant.inference:
            check_optimizer(self.workload)
        w = self._sharded(variant)
        w.optimizer.zero_grad(set_to_none=True)
        state_of(w.optimizer).clear()
        attributes = ModuleAttributes(w.model)
        batch = self._batch(self._examples, batch_size, has_values)
        unseen = None
        if self._evaluation_examples is not None and not variant.inference:
            unseen = self._batch(self._evaluation_examples, batch_size, has_values)
        recorder = Recorder(sum_of if variant.capability is not None else None)
        with ExitStack() as stack:
            # Otherwise reference cycles would be freed at arbitrary events of the trace.
            stack.enter_context(without_collecting())
            if any(isinstance(module, nn.RNNBase) for module in w.model.modules()):
                stack.enter_context(_without_onednn())
            if variant.capability is not None:
                is_fake = self._mode is not None
                stack.enter_context(cuda_semantics(variant.capability, is_fake=is_fake))
            stack.enter_context(self._eager_mode())
            stack.enter_context(optimizer_as(w.optimizer, variant))
            if variant.checkpointing:
                stack.enter_context(checkpointed(w.model))
            if self._mode is not None:
                stack.enter_context(fake_checks_denied())
                stack.enter_context(self._mode)
                stack.enter_context(KnownValues(self._mode, self._assume))
            if variant.halved:
                batch = half_images(batch)
                unseen = None if unseen is None else half_images(unseen)
            parts = [batch]
            if variant.accumulation > 1:
                size = ceil(count_examples(batch) / variant.accumulation)
                parts = list(w.split(batch, size))
                unseen = None if unseen is None else w.split(unseen, size)[0]
            stack.enter_context(recorder.naming(w.model))
            stack.enter_context(recorder)
            if variant.sharding is not None:
                stack.enter_context(recorder.sharded())
            moved = (w.model, *held_modules(w))
            for name, tensor in [pair for each in moved for pair in in_order_of_moving(each)]:
                kind = "parameters" if isinstance(tensor, nn.Parameter) else "other"
                recorder.hold([tensor], kind, name)
            move = OneBatch() if self._reuses_batch else None
            record_step(w, parts, unseen, variant, recorder, move=move)
            trace = recorder.trace()
        attributes.restore()
        w.optimizer.zero_grad(set_to_none=True)
        state_of(w.optimizer).clear()
        if self._is_sharded:
            free_gathered(w.model)
        return trace

    def _sharded(self, variant: Variant) -> Workload:
        """Return the workload as this process has it; sharded once, for all later traces."""
        if variant.sharding is not None and not self._is_sharded:
            assert self._mode is not None  # `traces` refuses real tensors
            self.workload = shard(self.workload, variant.sharding, variant.ranks, self._mode)
            self._is_sharded = True
        return self.workload

    def _assume(self, operator: str) -> None:
        """Note that a number that depends on unknown values is assumed.

        Raises:
            UnknownValueError: if the model is so small that real tensors give the number.
        """
        if self.at_least <= REAL_LIMIT:
            raise UnknownValueError(operator)
        note = (
            f"the step reads numbers that depend on its weights or activations ({operator}); they "
            "were assumed to be ordinary: finite, and checks pass"
        )
        self.notes += [note] if note not in self.notes else []

    def _batch(self, examples: WorstExamples, batch_size: int, has_values: bool) -> Batch:
        """Return the batch of the largest examples, fake unless real tensors are followed."""
        indices = examples.worst(batch_size)
        mode = self._mode

        def collate(chosen: Sequence[int]) -> Batch:
            return examples.batch(chosen, self.workload.collate)

        if mode is None:
            return collate(indices)
        if not has_values:
            shaped = shaped_batch(collate, indices, mode, sizes_differ=examples.sizes_differ)
            if shaped is not None:
                return shaped
        return map_tensors(collate(indices), lambda leaf: fake_with_value(leaf, mode))

    def _eager_mode(self) -> AbstractContextManager[object]:
        """Run a compiled model eagerly; only for compiled models, because the import is slow."""
        if not any(type(m).__name__ == "OptimizedModule" for m in self.workload.model.modules()):
            return nullcontext()
        note = "the compiled model was followed in eager mode; compiled, it may need less memory"
        if note not in self.notes:
            self.notes.append(note)
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Disable oneDNN, whose recurrent layers have a workspace of unknown size."""
    was_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was_enabled)
