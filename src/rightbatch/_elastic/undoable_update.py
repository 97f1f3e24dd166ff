"""The optimizer's step in chunks, each of which can be undone: it ends whole, or not at all.

An optimizer allocates while it updates (AdamW its state, every one its temporaries), so it may fail
with half of the weights changed. Copies of everything would double its memory and its time.
Instead, parameters are updated a chunk at a time and only the chunk is copied before. A chunk that
fails is put back and tried again in smaller ones. Its gradients are all there, so the update can
always be completed, and need not be repeated.

Chunks need an optimizer that treats each parameter by itself, as those of torch do, LBFGS excepted.
Any other one is a single chunk: all that it changes is copied before. Those that were made with
`fused=True` change parameters by kernels for which nothing is allocated but their state before:
once it is there they cannot fail half way, and nothing is copied.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch import _faults
from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import release
from rightbatch._elastic.gradients import caught
from rightbatch._errors import NothingFitsError

CHUNK_BYTES = {"cpu": 2**20, "cuda": 64 * 2**20, "mps": 64 * 2**20}
"""Of parameters. On a CPU a chunk and its copies stay in the processor's cache."""
PAUSES = (0.0, 0.1, 1.0)
"""Seconds before a single parameter is tried again, since another program may hold the memory."""

Where = tuple[dict[str, Any], nn.Parameter]


class UndoableUpdate:
    """Makes `optimizer.step` atomic while `armed`; `on_undo(reason)` hears of what was undone."""

    def __init__(
        self, optimizer: Optimizer, device: torch.device, on_undo: Callable[[str], None]
    ) -> None:
        self._optimizer = optimizer
        self._device = device
        self._on_undo = on_undo
        self._pending: list[list[Where]] = []
        self._entered = False
        self._scratch = _Scratch()

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Inside, `optimizer.step()` goes by chunks, whoever calls it (a GradScaler, a trainer)."""
        optimizer = self._optimizer
        plain = optimizer.step
        had = vars(optimizer).get("step")

        def step(closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            if self._is_fused:
                self._run_fused(plain)
            else:
                self._pending = self._chunks()
                self._run(plain)
            return loss

        optimizer.step = step  # type: ignore[method-assign]
        try:
            yield
        finally:
            if had is None:
                del optimizer.step
            else:
                optimizer.step = had  # type: ignore[method-assign]

    def finish(self) -> None:
        """Complete an update that had to be given up half way; nothing where there is none."""
        if self._pending:
            self._run(self._optimizer.step)

    @property
    def is_half_done(self) -> bool:
        return bool(self._pending)

    def _run(self, plain: Callable[[], Any]) -> None:
        total = sum(len(chunk) for chunk in self._pending)
        self._entered = False
        while self._pending:
            chunk = self._pending[0]
            failure = self._try(plain, chunk)
            if failure is None:
                self._pending.pop(0)
                continue
            release(self._device)
            if len(chunk) > 1 and self._splits:
                middle = len(chunk) // 2
                self._pending[:1] = [chunk[:middle], chunk[middle:]]
                self._on_undo(f"{failure}; {len(chunk)} parameters were put back, to go on in two")
            else:
                self._on_undo(f"{failure}; {len(chunk)} parameters were put back, to try again")
                self._insist(plain, chunk, total)

    def _run_fused(self, plain: Callable[[], Any]) -> None:
        failure = ""
        for pause in PAUSES:
            time.sleep(pause)
            try:
                _faults.enter("optimizer")
                plain()
                return
            except BaseException as error:
                failure = caught(error, "optimizer").message
            release(self._device)
            self._on_undo(f"{failure}; a fused step had changed nothing yet, to try again")
        raise NothingFitsError(
            "memory ran out for the optimizer's state, before its step: weights are as before it, "
            f"and the next step with these gradients makes it ({failure})",
            error_type="OutOfMemoryError",
            error_message=failure,
        )

    def _insist(self, plain: Callable[[], Any], chunk: list[Where], total: int) -> None:
        failure: str | None = ""
        for pause in PAUSES:
            time.sleep(pause)
            failure = self._try(plain, chunk)
            if failure is None:
                self._pending.pop(0)
                return
            release(self._device)
        left = sum(len(each) for each in self._pending)
        raise NothingFitsError(
            f"memory ran out in the optimizer's step, with {left} of {total} parameters not "
            "updated yet; their gradients are kept, and the next step completes the update "
            f"before it begins ({failure})",
            error_type="OutOfMemoryError",
            error_message=failure or "",
        )

    def _try(self, plain: Callable[[], Any], chunk: list[Where]) -> str | None:
        """Update the chunk; what went wrong, with the chunk as it was before, or None."""
        before: _Before | None = None
        try:
            before = _Before(self._optimizer, chunk, self._scratch)
            with self._only(chunk):
                plain()
            if not self._entered:  # after the first chunk, so that a fault comes half way
                self._entered = True
                _faults.enter("optimizer")
        except BaseException as error:
            if before is not None:
                before.put_back()
            if not is_out_of_memory(error):
                self._pending = []
            return caught(error, "optimizer").message
        return None

    @property
    def _is_fused(self) -> bool:
        """Once all state is there, or with one group: torch allocates it group by group, so that a
        later group's may fail after an earlier one was updated."""
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        if not (_is_torchs(optimizer) and all(group.get("fused") for group in groups)):
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
        return _is_torchs(optimizer) and not has_hooks

    def _chunks(self) -> list[list[Where]]:
        everything = [
            (group, parameter)
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not self._splits:
            return [everything]
        chunks: list[list[Where]] = []
        most = CHUNK_BYTES.get(self._device.type, CHUNK_BYTES["cuda"])
        held = 0
        for group, parameter in everything:
            if not chunks or held + parameter.nbytes > most:
                chunks.append([])
                held = 0
            chunks[-1].append((group, parameter))
            held += parameter.nbytes
        return chunks

    @contextmanager
    def _only(self, chunk: list[Where]) -> Iterator[None]:
        """The optimizer has no other parameters meanwhile."""
        groups = self._optimizer.param_groups
        parameters = [group["params"] for group in groups]
        if self._splits:
            mine: dict[int, list[nn.Parameter]] = {}
            for group, parameter in chunk:
                mine.setdefault(id(group), []).append(parameter)
            self._optimizer.param_groups = [group for group in groups if id(group) in mine]
            for group in self._optimizer.param_groups:
                group["params"] = mine[id(group)]
        try:
            yield
        finally:
            self._optimizer.param_groups = groups
            for group, all_of_them in zip(groups, parameters, strict=True):
                group["params"] = all_of_them


def _is_torchs(optimizer: Optimizer) -> bool:
    """One that treats each parameter by itself."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim.") and kind is not torch.optim.LBFGS


class _Scratch:
    """Where copies lie on a CPU: memory that is asked for anew is paid for page by page.

    It is as large as the largest chunk with its state. A GPU's allocator keeps what is freed.
    """

    _ALIGNMENT = 64

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def copies(self, tensors: list[Tensor]) -> list[Tensor]:
        """Copies that last until the next call."""
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


class _Before:
    """Parameters, and all that the optimizer knows of them, as they were."""

    def __init__(self, optimizer: Optimizer, chunk: list[Where], scratch: _Scratch) -> None:
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
        self._copies = scratch.copies(tensors)

    def put_back(self) -> None:
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
