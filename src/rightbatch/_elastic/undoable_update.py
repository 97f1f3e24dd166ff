"""Run the optimizer's step in chunks that can be undone, so that it completes entirely or not.

An optimizer allocates during its step (AdamW its state, all of them temporaries), so it can run out
of memory with half of the weights updated. Copying everything first would double its memory and
time. Instead, parameters are updated one chunk at a time, and only the chunk is copied first. A
chunk that fails is restored and retried in smaller chunks. The gradients are kept, so the update
can always be completed later.

Chunks require an optimizer that treats each parameter separately, as those of torch do except
LBFGS. For any other optimizer all parameters are one chunk. An optimizer with `fused=True`
allocates only its state, before its kernel runs: once the state exists it cannot fail half way,
and nothing is copied.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch import _faults
from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import release
from rightbatch._elastic.gradients import failure_from
from rightbatch._errors import NothingFitsError

CHUNK_BYTES = {"cpu": 2**20, "cuda": 64 * 2**20, "mps": 64 * 2**20}
"""Bytes of parameters in a chunk. On a CPU a chunk and its copies fit into the cache."""
PAUSES = (0.0, 0.1, 1.0)
"""Seconds before a single parameter is retried; another program may free memory meanwhile."""

_WRAPPED = "_wrapped_by_lr_sched"
"""Torch's mark of a step that a schedule has wrapped, so that the next one does not."""

Member = tuple[dict[str, Any], nn.Parameter]
"""A parameter with its parameter group."""


class UndoableUpdate:
    """Makes `optimizer.step` atomic inside `atomic()`; calls `on_undo(reason)` after each undo."""

    def __init__(
        self, optimizer: Optimizer, device: torch.device, on_undo: Callable[[str], None]
    ) -> None:
        self._optimizer = optimizer
        self._device = device
        self._on_undo = on_undo
        self._pending: list[list[Member]] = []
        self._has_entered = False
        self._copies = _CopyBuffer()

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Replace `optimizer.step`, so that every caller (GradScaler, trainer) runs the chunks.

        It stays a method, which schedules that are made meanwhile can wrap as torch's do. What
        wraps it is kept at the end, and then calls the optimizer's own step.
        """
        optimizer = self._optimizer
        original = optimizer.step
        override = vars(optimizer).get("step")
        is_active = True

        def step(_: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            if not is_active:
                return original() if closure is None else original(closure)
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            if self._is_fused:
                self._run_fused(original)
            else:
                self._pending = self._chunks()
                self._run(original)
            return loss

        if hasattr(original, _WRAPPED):
            setattr(step, _WRAPPED, True)
        replacement = MethodType(step, optimizer)
        optimizer.step = replacement  # type: ignore[method-assign]
        try:
            yield
        finally:
            is_active = False
            if vars(optimizer).get("step") is not replacement:
                pass
            elif override is None:
                del optimizer.step
            else:
                optimizer.step = override  # type: ignore[method-assign]

    def finish(self) -> None:
        """Complete an update that was interrupted half way, if there is one."""
        if self._pending:
            self._run(self._optimizer.step)

    def _run(self, original: Callable[[], Any]) -> None:
        total = sum(len(chunk) for chunk in self._pending)
        self._has_entered = False
        while self._pending:
            chunk = self._pending[0]
            failure = self._try(original, chunk)
            if failure is None:
                self._pending.pop(0)
                continue
            release(self._device)
            if len(chunk) > 1 and self._splits:
                middle = len(chunk) // 2
                self._pending[:1] = [chunk[:middle], chunk[middle:]]
                self._on_undo(
                    f"{failure}; restored {len(chunk)} parameters, retrying in two halves"
                )
            else:
                self._on_undo(f"{failure}; restored {len(chunk)} parameters, retrying")
                self._retry(original, chunk, total)

    def _run_fused(self, original: Callable[[], Any]) -> None:
        failure = ""
        for pause in PAUSES:
            time.sleep(pause)
            try:
                _faults.enter("optimizer")
                original()
                return
            except BaseException as error:
                failure = failure_from(error, "optimizer").message
            release(self._device)
            self._on_undo(f"{failure}; the fused step had changed nothing, retrying")
        raise NothingFitsError(
            "memory ran out while the optimizer allocated its state, before its step: the weights "
            f"are unchanged; free memory and repeat the step with these gradients ({failure})",
            error_type="OutOfMemoryError",
            error_message=failure,
        )

    def _retry(self, original: Callable[[], Any], chunk: list[Member], total: int) -> None:
        failure: str | None = ""
        for pause in PAUSES:
            time.sleep(pause)
            failure = self._try(original, chunk)
            if failure is None:
                self._pending.pop(0)
                return
            release(self._device)
        left = sum(len(each) for each in self._pending)
        raise NothingFitsError(
            f"memory ran out in the optimizer's step, with {left} of {total} parameters not "
            "updated yet; their gradients are kept, and the next step first completes this update "
            f"({failure})",
            error_type="OutOfMemoryError",
            error_message=failure or "",
        )

    def _try(self, original: Callable[[], Any], chunk: list[Member]) -> str | None:
        """Update the chunk; on failure restore it and return the message, else return None."""
        before: _ChunkCopy | None = None
        try:
            before = _ChunkCopy(self._optimizer, chunk, self._copies)
            with self._limited_to(chunk):
                original()
            if not self._has_entered:  # after the first chunk, so that a fault is half way
                self._has_entered = True
                _faults.enter("optimizer")
        except BaseException as error:
            if before is not None:
                before.restore()
            if not is_out_of_memory(error):
                self._pending = []
            return failure_from(error, "optimizer").message
        return None

    @property
    def _is_fused(self) -> bool:
        """Whether the step is one fused kernel that cannot fail half way.

        With several groups this requires that all state exists: torch allocates it group by group,
        so a later group can fail after an earlier one was updated.
        """
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        if not (_is_separable(optimizer) and all(group.get("fused") for group in groups)):
            return False
        return len(groups) == 1 or all(
            optimizer.state.get(parameter)
            for group in groups
            for parameter in group["params"]
            if parameter.grad is not None
        )

    @property
    def _splits(self) -> bool:
        optimizer = self._optimizer
        has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        return _is_separable(optimizer) and not has_hooks

    def _chunks(self) -> list[list[Member]]:
        members = [
            (group, parameter)
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not self._splits:
            return [members]
        chunks: list[list[Member]] = []
        most = CHUNK_BYTES.get(self._device.type, CHUNK_BYTES["cuda"])
        size = 0
        for group, parameter in members:
            if not chunks or size + parameter.nbytes > most:
                chunks.append([])
                size = 0
            chunks[-1].append((group, parameter))
            size += parameter.nbytes
        return chunks

    @contextmanager
    def _limited_to(self, chunk: list[Member]) -> Iterator[None]:
        """Remove all other parameters from the optimizer inside the context."""
        groups = self._optimizer.param_groups
        parameters = [group["params"] for group in groups]
        if self._splits:
            in_chunk: dict[int, list[nn.Parameter]] = {}
            for group, parameter in chunk:
                in_chunk.setdefault(id(group), []).append(parameter)
            self._optimizer.param_groups = [group for group in groups if id(group) in in_chunk]
            for group in self._optimizer.param_groups:
                group["params"] = in_chunk[id(group)]
        try:
            yield
        finally:
            self._optimizer.param_groups = groups
            for group, members in zip(groups, parameters, strict=True):
                group["params"] = members


def _is_separable(optimizer: Optimizer) -> bool:
    """Return whether the optimizer treats each parameter separately."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim.") and kind is not torch.optim.LBFGS


class _CopyBuffer:
    """A reused buffer for copies on a CPU, where new memory costs a page fault per page.

    It grows to the largest chunk with its state. A GPU's allocator caches freed memory itself.
    """

    _ALIGNMENT = 64

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def copies(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return copies that are valid until the next call."""
        sizes = [-(-t.nbytes // self._ALIGNMENT) * self._ALIGNMENT for t in tensors]
        if any(t.device.type != "cpu" for t in tensors):
            return [tensor.clone() for tensor in tensors]
        if sum(sizes) > len(self._memory):
            self._memory = torch.empty(sum(sizes), dtype=torch.uint8)
        copies = []
        for tensor, start in zip(tensors, itertools.accumulate(sizes, initial=0), strict=False):
            flat = self._memory[start : start + tensor.nbytes].view(tensor.dtype)
            copies.append(flat.view(tensor.shape).copy_(tensor))
        return copies


class _ChunkCopy:
    """A copy of a chunk's parameters and their optimizer state."""

    def __init__(self, optimizer: Optimizer, chunk: list[Member], buffer: _CopyBuffer) -> None:
        self._optimizer = optimizer
        self._groups = [
            (group, {k: v for k, v in group.items() if k != "params"})
            for group in {id(group): group for group, _ in chunk}.values()
        ]
        tensors: list[Tensor] = []
        self._states: list[tuple[nn.Parameter, dict[Any, Any] | None]] = []
        for _, parameter in chunk:
            tensors.append(parameter.detach())
            state = optimizer.state.get(parameter)
            self._states.append((parameter, dict(state) if state else None))
            if state:
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        self._tensors = tensors
        self._copies = buffer.copies(tensors)

    def restore(self) -> None:
        """Restore the parameters, their state and their groups' options."""
        with torch.no_grad():
            for tensor, copy in zip(self._tensors, self._copies, strict=True):
                tensor.copy_(copy)
        for parameter, state in self._states:
            if state is None:
                self._optimizer.state.pop(parameter, None)
            else:
                self._optimizer.state[parameter] = state
        for group, values in self._groups:
            group.update(values)
