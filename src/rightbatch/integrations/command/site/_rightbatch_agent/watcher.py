"""Observes a training: steps, micro-batches, losses, batch sizes, waiting, memory.

Wraps a few functions of torch, none of which change what is computed: losses and weights are equal
bit for bit. A wrapper that fails reports it, and from then on only calls what it wraps.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Callable

from . import connection as _connection
from .decays import betas_of
from .inputs import Inputs
from .loaders import Loaders
from .memory import Memory, shared
from .noise import Noise
from .optimizers import Updates
from .settings import Settings
from .warm_up import warm_up

_PATIENCE = 4  # backward passes without an optimizer of torch's, after which each counts as a step
_LOOKS = 3  # steps in which the size of a batch without a loader is taken from the model's input
_INTERVAL = 0.2  # seconds between messages while the training is only watched
_LIVE_STEPS = range(2, 200)  # after which memory in use may be looked at
_MOST_LIVE = 8  # steps in which it is
_CUDA_LOSSES = 50  # losses on a device that are read together


class Watcher:
    """Observes this process from the end of `import torch` on."""

    def __init__(self, torch: Any, settings: Settings) -> None:
        self._torch, self._settings = torch, settings
        self._memory = Memory(torch)
        self._noise = Noise(torch, self._send, lambda: self._world() > 1, settings.noise)
        self._is_on = True
        self._has_memory = self._is_warm = False
        self._steps = 0
        self._own_updates = 0  # backward passes that no optimizer of torch's has followed
        self._undecided: list[tuple[int | None, float, float]] = []  # of the first ones
        self._forget()
        # Examples of the batches that no backward pass has used: Accelerate fetches one ahead.
        self._fetched: deque[int | None] = deque(maxlen=2)
        self._fetched_from: Callable[[], Any] = lambda: None
        self._examples = 0  # of the update before
        self._most_examples = 0  # of an update in this step: a GAN's first one has two periods
        self._epoch: int | None = None
        self._inputs = Inputs(settings.batch)
        self._input_hook: Any = None
        self._error_hook: Any = None
        self._has_loader = False
        self._repeats = False  # whether later backward passes of a step use the same batch again
        self._losses: list[tuple[int, Any, Any]] = []
        self._scales: dict[int, Any] = {}
        self._steps_waiting: list[dict[str, Any]] = []
        self._sent_at = self._step_started_at = time.perf_counter()
        self._live_steps = 0  # in which the memory in use was looked at
        self._live: dict[str, int] | None = None  # what was seen of it in this step
        self._cleared: int | None = None  # bytes of gradients that were missing at its backward
        self._largest_part = 0  # examples of a backward pass of this step
        self._has_evaluated = self._has_saved = False
        self._after_evaluation = False

    def _forget(self) -> None:
        """Start a new step."""
        self._waited = 0.0
        self._micro_batches = 0
        self._step_examples: int | None = None

    def install(self) -> None:
        """Wrap torch's functions, and greet the parent."""
        torch = self._torch
        if not self._settings.noise:
            self._noise.refuse("")
        if self._settings.trial or self._settings.ends_with_parent:
            _connection.end_with_parent(self._settings)
        self._send(event="torch", version=torch.__version__)
        self._updates = Updates(
            torch,
            self._loading,
            self._safely(self._on_optimizer),
            self._safely(self._before_update),
            self._safely(self._on_update),
        )
        Loaders(torch, self._safely(self._on_batch))
        self._wrap(torch.nn.Module, "__init__", before=self._on_module)
        self._input_hook = torch.nn.modules.module.register_module_forward_pre_hook(
            self._safely(self._on_input)
        )
        if self._settings.trial:
            with suppress(TypeError):  # torch before 2.1
                self._error_hook = torch.nn.modules.module.register_module_forward_hook(
                    self._safely(self._after_forward), always_call=True
                )
        self._wrap(torch.autograd, "backward", before=self._on_backward, after=self._after_backward)
        self._wrap(torch.autograd, "grad", after=self._after_grad)
        optimizer = sys.modules["torch.optim.optimizer"].Optimizer  # `torch.optim` hides the name
        self._wrap(optimizer, "zero_grad", before=self._on_cleared)
        self._wrap(torch, "save", before=self._on_save)
        self._wrap(torch.amp.GradScaler, "scale", after=self._on_scaled)
        self._wrap(torch, "compile", before=self._on_compile)
        hook = sys.excepthook

        def report_and_raise(kind: Any, error: Any, trace: Any) -> None:
            self._safely(self._on_error)(error)
            hook(kind, error, trace)

        sys.excepthook = report_and_raise
        import atexit

        atexit.register(self._safely(self._on_exit))
        # Exit handlers do not run then, as in children that multiprocessing has forked.
        for name in ("_exit", "execv", "execve"):
            self._wrap(os, name, before=self._on_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._safely(self._on_fork))

    def _safely(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls another one until one has failed, and never raises."""

        def call(*arguments: Any, **keywords: Any) -> None:
            if not self._is_on:
                return
            try:
                function(*arguments, **keywords)
            except Exception as error:
                self._is_on = False
                self._send(event="agent_error", error=f"{type(error).__name__}: {error}")

        return call

    def _wrap(
        self,
        owner: Any,
        name: str,
        before: Callable[..., Any] | None = None,
        after: Callable[..., Any] | None = None,
    ) -> None:
        """Call `before` with a function's arguments, and `after` with its result as well."""
        inner = getattr(owner, name)
        before = self._safely(before) if before else None
        after = self._safely(after) if after else None

        @functools.wraps(inner)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            if before is not None:
                before(*arguments, **keywords)
            try:
                result = inner(*arguments, **keywords)
            except Exception as error:
                self._safely(self._on_raised)(error)
                raise
            if after is not None:
                after(result, *arguments, **keywords)
            return result

        wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
        if name == "__init__" and owner is self._torch.nn.Module:
            self._module_init = inner
        setattr(owner, name, wrapper)

    # What the training does, in the order of a step.

    def _on_module(self, *arguments: Any, **keywords: Any) -> None:
        """Before the first module is built: from here on memory is the training's."""
        self._torch.nn.Module.__init__ = self._module_init
        self._start_memory()

    def _start_memory(self) -> None:
        if self._has_memory:
            return
        self._has_memory = True
        settings = self._settings
        self._memory.start(settings)
        self._send(event="memory", memory=self._memory.read())

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """While an optimizer is made: torch imports code, and its pool of threads is started.

        That is not done earlier: processes that are forked before could not use the pool.
        """
        if not self._is_on:
            yield
            return
        self._safely(self._start_memory)()
        with self._memory.loading():
            if self._settings.trial and not self._is_warm:
                self._is_warm = True
                self._is_on = self._updates.is_on = False
                warm_up(self._torch)
                self._is_on = self._updates.is_on = True
            yield

    def _on_optimizer(self, optimizer: Any) -> None:
        self._start_memory()
        self._noise.restart()
        # Before a schedule changes it: the rate that the script was given.
        group: dict[str, Any] = next(iter(optimizer.param_groups), {})
        rate = group.get("lr")
        self._send(
            event="training",
            world=self._world(),
            learning_rate=None if rate is None else float(rate),
            betas=betas_of(optimizer, group),
        )

    def _on_batch(
        self, examples: int | None, seconds: float, length: int | None, iterator: Any
    ) -> None:
        self._waited += seconds
        if not self._torch.is_grad_enabled():
            self._on_evaluation()
            return
        if self._fetched_from() is not iterator:  # an epoch that ended early, another loader
            self._fetched.clear()
            self._fetched_from = weakref.ref(iterator)
        self._fetched.append(examples)
        self._has_loader = True
        if self._epoch is None:
            self._epoch = length

    def _on_input(self, module: Any, arguments: Any) -> None:
        if self._torch.is_grad_enabled():
            self._inputs.look(module, arguments)
        elif not module.training and self._updates.trains(module):
            self._on_evaluation()  # not a teacher, nor a policy that acts

    def _on_cleared(self, *_: Any, **__: Any) -> None:
        self._inputs.cleared()

    def _stop_looking(self) -> None:
        is_awaited = self._settings.until_evaluation and not self._has_evaluated
        if self._input_hook is not None and not is_awaited:
            self._input_hook.remove()
            self._input_hook = None

    def _on_evaluation(self) -> None:
        if self._steps:  # before, the optimizer has no state and there are no gradients
            self._has_evaluated = True

    def _on_save(self, *arguments: Any, **keywords: Any) -> None:
        self._has_saved = True

    def _on_scaled(self, result: Any, scaler: Any, *arguments: Any, **keywords: Any) -> None:
        if isinstance(result, self._torch.Tensor):
            scale = getattr(scaler, "_scale", None)
            if scale is not None:
                scale = scale.detach().clone()  # the scaler changes it in place
            self._scales = {id(result): (result, scale)}

    def _on_compile(self, *arguments: Any, **keywords: Any) -> None:
        self._stop_looking()
        if self._error_hook is not None:
            self._error_hook.remove()
        self._noise.refuse("the model is compiled, and hooks would compile it again")

    def _on_backward(self, tensors: Any, *arguments: Any, **keywords: Any) -> None:
        if self._memory.is_measuring and self._cleared is None:
            self._cleared = self._updates.missing_gradient_bytes()
        fetched = self._fetched[0] if self._fetched else None
        self._noise.before_backward(fetched or self._inputs.size)
        root = tensors[0] if isinstance(tensors, (list, tuple)) and tensors else tensors
        if isinstance(root, self._torch.Tensor) and root.numel() == 1:
            scaled, scale = self._scales.pop(id(root), (None, None))
            scale = scale if scaled is root else None
            # A copy, since the script may change its loss in place.
            self._losses.append((self._steps, root.detach().clone(), scale))

    def _after_backward(self, result: Any, *arguments: Any, **keywords: Any) -> None:
        self._updates.has_gradients = True
        if self._updates.is_inside and self._micro_batches:
            self._noise.after_backward(None)  # a closure that runs again on the same examples
            return
        is_fetched, seen = bool(self._fetched), self._inputs.size
        examples = self._next_fetched()
        if self._input_hook is not None:
            self._inputs.restart()
            if self._has_loader and not is_fetched:  # a loop may split a batch by itself
                self._repeats = seen in (None, self._largest_part)
        if self._has_loader and not is_fetched and self._micro_batches and self._repeats:
            self._noise.after_backward(None)
            return
        self._micro_batches += 1
        if not self._has_loader:
            examples = seen
        if examples is not None:
            self._step_examples = (self._step_examples or 0) + examples
            self._largest_part = max(self._largest_part, examples)
        self._noise.after_backward(examples)
        if not self._updates.has_any:
            self._own_updates += 1
            if self._own_updates <= _PATIENCE:
                self._undecided.append((examples, time.perf_counter(), time.monotonic()))
            else:
                self._start_memory()
                self._take_undecided()
                self._micro_batches, self._step_examples = 1, examples
                self._on_update(None, ends=True)

    def _take_undecided(self) -> None:
        """The backward passes so far were steps: no optimizer of torch's has followed."""
        undecided, self._undecided = self._undecided, []
        for examples, now, ended_at in undecided:
            self._steps += 1
            step = {
                "number": self._steps,
                "seconds": now - self._step_started_at,
                "ended_at": ended_at,
                "waited": 0.0,
                "examples": examples,
                "micro_batches": 1,
            }
            self._step_started_at = now
            self._steps_waiting.append(step)

    def _next_fetched(self) -> int | None:
        return self._fetched.popleft() if self._fetched else None

    def _after_grad(self, result: Any, *arguments: Any, **keywords: Any) -> None:
        """After `torch.autograd.grad`: gradients that a script puts into its parameters itself."""
        self._updates.has_gradients = True

    def _before_update(self, optimizer: Any) -> None:
        self._noise.before_update(optimizer)
        if self._micro_batches and self._updates.count == 1:
            self._end_of_activations()  # what an optimizer needs does not depend on the batch

    def _end_of_activations(self) -> None:
        found = self._memory.end_step()
        if found is not None:
            # Several backward passes add to the gradients of the first one.
            cleared = (self._cleared or 0) if self._micro_batches == 1 else 0
            self._live = {**found, "cleared": cleared, "examples": self._largest_part}

    def _on_update(self, optimizer: Any, ends: bool) -> None:
        self._noise.after_update()
        # Without a backward pass (`torch.func`) the batch is what the loader has returned.
        returned = None if self._micro_batches else self._next_fetched()
        examples = self._step_examples or returned or self._examples or None
        self._examples = examples or 0
        self._most_examples = max(self._most_examples, self._examples)
        micro_batches, waited = self._micro_batches, self._waited
        if not ends:
            self._step_examples, self._micro_batches = None, 0
            return
        examples, self._most_examples = self._most_examples or None, 0
        now = time.perf_counter()
        self._steps += 1
        if self._steps >= _LOOKS:
            self._stop_looking()
            self._inputs.settle(examples // max(micro_batches, 1) if examples else None)
        step: dict[str, Any] = {
            "number": self._steps,
            "seconds": now - self._step_started_at,
            "ended_at": time.monotonic(),  # one clock for all processes of a machine
            "waited": waited,
            "examples": examples,
            "micro_batches": micro_batches,
        }
        if not self._has_loader:
            step["by_input"] = True
        self._end_of_activations()
        if self._live is not None and self._largest_part:
            step["live"] = self._live
            self._live_steps += 1
        self._live, self._cleared, self._largest_part = None, None, 0
        self._step_started_at = now
        self._forget()
        self._steps_waiting.append(step)
        if self._updates.count > 1:
            self._noise.refuse("several optimizers take turns")
        self._report(step, now)
        if (
            self._steps in _LIVE_STEPS
            and self._live_steps < _MOST_LIVE
            and not self._settings.trial
            and not self._noise.is_sampling  # which keeps inputs
        ):
            self._memory.start_step()
        # The agent's own time is no part of a step.
        self._step_started_at = time.perf_counter()

    def _report(self, step: dict[str, Any], now: float) -> None:
        """Send the steps so far, and block at the last one until the parent ends this process."""
        settings = self._settings
        is_covered = not settings.until_evaluation or self._after_evaluation
        self._after_evaluation = self._has_evaluated  # one more step after the evaluation
        is_last = bool(settings.steps) and self._steps >= settings.steps and is_covered
        is_measured = settings.trial and settings.steps  # each step: its memory and its time
        if (is_last or is_measured) and self._torch.cuda.is_initialized():
            self._torch.cuda.synchronize()
        if is_last or is_measured or now - self._sent_at > _INTERVAL:
            step["memory"] = self._memory.read()
            self._flush(is_last)
        if is_last:
            self._send(event="reached", **self._coverage())
            self._connection().wait_for_the_end()

    def _coverage(self) -> dict[str, Any]:
        return {
            "evaluated": self._has_evaluated,
            "saved": self._has_saved,
            "epoch": self._epoch,
            "fixed": self._updates.fixed_bytes(),
            "world": self._world(),
        }

    def _flush(self, is_last: bool) -> None:
        """Send the steps that wait, with the losses that can be read without waiting for them."""
        self._sent_at = time.perf_counter()
        self._send_steps(self._read_losses(is_last))

    def _send_steps(self, losses: list[tuple[int, float]]) -> None:
        steps, self._steps_waiting = self._steps_waiting, []
        self._send(
            event="steps",
            steps=steps,
            losses=losses,
            **self._coverage(),
        )

    def _read_losses(self, is_last: bool = False) -> list[tuple[int, float]]:
        on_device = any(loss.is_cuda for _, loss, _ in self._losses)
        if on_device and len(self._losses) < _CUDA_LOSSES and not is_last:
            return []
        losses, self._losses = self._losses, []
        read = []
        for step, loss, scale in losses:
            factor = float(scale) if scale is not None else 1.0
            read.append((step, float(loss) / (factor or 1.0)))
        return read

    def _after_forward(self, *_: Any) -> None:
        """Called after an error as well, while it is handled."""
        error = sys.exc_info()[1]
        if error is not None:
            self._on_raised(error)

    def _on_raised(self, error: BaseException) -> None:
        """In a trial, report an out-of-memory error: scripts may catch it and skip the batch."""
        if self._settings.trial and shared("_device/out_of_memory").is_out_of_memory(error):
            self._on_error(error)

    def _on_error(self, error: BaseException) -> None:
        import traceback

        found = shared("_device/out_of_memory").is_out_of_memory(error)
        self._send(
            event="error",
            type=type(error).__name__,
            message=str(error)[:2000],
            traceback="".join(traceback.format_exception(type(error), error, error.__traceback__))[
                -20000:
            ],
            out_of_memory=found,
        )

    def _on_fork(self) -> None:
        """In a forked child, which is a process of its own, count from the start."""
        self._steps = self._own_updates = 0
        self._undecided, self._steps_waiting, self._losses = [], [], []
        self._most_examples = 0
        self._step_started_at = time.perf_counter()

    def _on_exit(self, *_: Any) -> None:
        if not self._steps and self._own_updates and not self._updates.has_any:
            self._start_memory()
            self._take_undecided()
        if not self._steps and self._most_examples:  # several optimizers, and no second period
            self._undecided = [(self._most_examples, time.perf_counter(), time.monotonic())]
            self._take_undecided()
        if not self._steps:
            return
        if self._steps_waiting:
            self._steps_waiting[-1]["memory"] = self._memory.read()
        self._send_steps(self._read_losses(is_last=True))

    def _world(self) -> int:
        distributed = self._torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return int(distributed.get_world_size())
        return 1

    def _connection(self) -> _connection.Connection:
        return _connection.connection(self._settings)

    def _send(self, **message: Any) -> None:
        try:
            self._connection().send(**message)
        except OSError:
            pass  # there is no parent: the training goes on
