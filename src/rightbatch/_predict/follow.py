"""Follow a workload's real step without its memory: fake tensors flow through it, and are recorded.

The model is built for real on the CPU, without filling its weights, and its parameters are made
fake; a model too large for that is built fake. Data and collate are always real. Where a step
needs numbers (a detection loss, a boolean mask), real tensors are followed instead, at sizes so
small that they fit anywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rightbatch._device import is_out_of_memory, open_device
from rightbatch._errors import UsageError
from rightbatch._predict.cuda_semantics import cuda_semantics, temporaries
from rightbatch._predict.recorder import Recorder
from rightbatch._predict.trace import Trace
from rightbatch._predict.variant import (
    Variant,
    autocast,
    checkpointed,
    half_images,
    optimizer_as,
)
from rightbatch._workload.batch import Batch, count_examples, map_tensors
from rightbatch._workload.workload import Workload
from rightbatch._workload.worst import WorstExamples

BUILD_LIMIT = 5 * 2**29
"""A model whose construction needs more than this (2.5 GiB) is built fake."""
STEPS = 2  # the first creates the optimizer's state
_FILLS = {"normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_", "bernoulli_"}
_REFUSED = {
    "FullyShardedDataParallel": "what FSDP gathers and when is not known without its processes",
    "FSDPModule": "what FSDP gathers and when is not known without its processes",
    "DistributedDataParallel": "give the bare model; --processes adds what DDP takes",
    "bitsandbytes": "its 8-bit kernels run on CUDA only, and so does its memory",
    "torchao": "its optimizers compile their step; rightbatch fit measures it where the GPU is",
    "deepspeed": "it shards and moves state by itself; rightbatch fit measures it where the GPU is",
}
"""Classes, and packages of classes, whose memory cannot be followed; and why."""
_LARGE = 2**18  # elements; smaller tensors get their numbers, which code may look at


class Follower:
    """A workload whose step can be traced at any batch size; for a process of its own.

    `how` is `fake`, or `real` where fake tensors did not do; `notes` say what a person should know.

    Raises:
        UsageError: if the factory returns no `Workload`.
    """

    def __init__(self, factory: Callable[[], Any], *, seed: int = 0) -> None:
        self._factory = factory
        self._seed = seed
        self._is_built_fake = False
        self.is_followed = False
        self.how = "fake"
        self.notes: list[str] = []
        self._mode: FakeTensorMode | None = FakeTensorMode(allow_non_fake_inputs=True)
        self.workload = self._build()

    @cached_property
    def _examples(self) -> WorstExamples:
        w = self.workload
        return WorstExamples(w.data, w.collate, w.size, self._seed)

    @property
    def examples(self) -> int | None:
        """How many examples one epoch has; None where nobody knows."""
        try:
            return len(self.workload.data)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def is_copyable(self) -> bool:
        """Whether no tensor that it follows holds numbers."""
        return self.how == "fake"

    @property
    def at_least(self) -> int:
        """Bytes that a step needs in any case."""
        return parameter_bytes(self.workload)

    def traces(self, batch_sizes: Sequence[int], variant: Variant) -> list[Trace]:
        """A trace per batch size; falls back to real tensors where fake ones cannot go.

        Raises:
            Exception: the workload's own, if real tensors fail as well.
        """
        try:
            traces = [self.trace(size, variant) for size in batch_sizes]
        except UsageError:
            raise
        except Exception as error:
            # What went once fails now because of its variant; numbers would not help it.
            if self.how == "real" or self._is_built_fake or self.is_followed:
                raise
            self._fall_back(error)
            traces = [self.trace(size, variant) for size in batch_sizes]
        self.is_followed = True
        return traces

    def _fall_back(self, error: BaseException) -> None:
        """Follow real tensors from now on, since `error` came of fake ones."""
        self.how, self._mode = "real", None
        operator = getattr(error, "func", None)
        what = f"{operator}" if operator is not None else f"{type(error).__name__}: {error}"
        self.notes.append(
            f"fake tensors cannot be followed through this step ({what.splitlines()[0][:200]}); "
            "real ones were, at small sizes"
        )
        self.workload = _checked(self._factory())
        gc.collect()

    def trace(self, batch_size: int, variant: Variant) -> Trace:
        """Two training steps and an evaluation; for inference, two evaluations."""
        w = self.workload
        w.optimizer.zero_grad(set_to_none=True)
        w.optimizer.state.clear()
        items = self._examples.worst(batch_size)
        batch = w.collate([self._examples.data[index] for index in items])
        recorder = Recorder(temporaries if variant.capability is not None else None)
        with ExitStack() as stack:
            # Cycles would be collected at moments that have nothing to do with the step.
            stack.enter_context(without_collecting())
            if any(isinstance(module, nn.RNNBase) for module in w.model.modules()):
                stack.enter_context(_without_onednn())
            if variant.capability is not None:
                stack.enter_context(cuda_semantics(variant.capability))
            stack.enter_context(self._eagerly())
            stack.enter_context(optimizer_as(w.optimizer, variant))
            if variant.checkpointing:
                stack.enter_context(checkpointed(w.model))
            if self._mode is not None:
                batch = map_tensors(batch, self._fake)
                stack.enter_context(self._mode)
            if variant.halved:
                batch = half_images(batch)
            parts = [batch]
            if variant.accumulation > 1:
                parts = list(w.split(batch, ceil(count_examples(batch) / variant.accumulation)))
            stack.enter_context(recorder.naming(w.model))
            stack.enter_context(recorder)
            held = list(in_order_of_moving(w.model))
            for tensor in held:
                kind = "parameters" if isinstance(tensor, nn.Parameter) else "other"
                recorder.hold([tensor], kind)
            _run(w, parts, variant, recorder)
            trace = recorder.trace()
        w.optimizer.zero_grad(set_to_none=True)
        w.optimizer.state.clear()
        return trace

    def _eagerly(self) -> AbstractContextManager[object]:
        """A compiled model runs as it was before; asking for that imports much, so only then."""
        if not any(type(m).__name__ == "OptimizedModule" for m in self.workload.model.modules()):
            return nullcontext()
        note = "the compiled model was followed as eager code; compiled, it may need less"
        if note not in self.notes:
            self.notes.append(note)
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    def _fake(self, leaf: Tensor) -> Tensor:
        assert self._mode is not None
        return leaf if isinstance(leaf, FakeTensor) else self._mode.from_tensor(leaf)

    def _build(self) -> Workload:
        assert self._mode is not None
        try:
            with _Unfilled():  # type: ignore[no-untyped-call]
                workload = _checked(self._factory())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            gc.collect()
            self._is_built_fake = True
            self.notes.append("the model is too large to be built here; it was built fake")
            with self._mode:
                return _checked(self._factory())
        swapped: dict[int, Tensor] = {}
        for module in workload.model.modules():
            for own in cast("list[dict[str, Any]]", [module._parameters, module._buffers]):
                for name, tensor in own.items():
                    if tensor is not None:
                        swapped[id(tensor)] = own[name] = self._fake(tensor)
        for group in workload.optimizer.param_groups:
            group["params"] = [swapped.get(id(p), p) for p in group["params"]]
        return workload


def guard_build() -> None:
    """Let building more than `BUILD_LIMIT` fail with an error, where the system can do that."""
    device = open_device("cpu")
    device.prepare()
    device.enforce(BUILD_LIMIT)


def _checked(made: Any) -> Workload:
    if not isinstance(made, Workload):
        raise UsageError(
            f"the factory returned {type(made).__name__}, expected a rightbatch.Workload"
        )
    for part in (*made.model.modules(), made.optimizer):
        for kind in type(part).__mro__:
            why = _REFUSED.get(kind.__name__) or _REFUSED.get(kind.__module__.split(".")[0])
            if why is not None:
                raise UsageError(f"{kind.__module__}.{kind.__name__} is not predicted: {why}")
    return made


def _run(w: Workload, parts: list[Batch], variant: Variant, recorder: Recorder) -> None:
    """The loop of `rightbatch._training.session`, with its phases named."""
    moved: Batch = None
    loss: Tensor | None = None
    if not variant.inference:
        w.model.train()
        for _ in range(STEPS):
            recorder.phase("zero gradients")
            w.optimizer.zero_grad()
            for part in parts:
                recorder.phase("forward")
                moved = _moved(part)
                start = len(recorder.order)
                with autocast(w, variant):
                    loss = w.loss(w.model, moved)
                recorder.classify_since(start, "activations")
                recorder.phase("backward")
                loss.backward()
                gradients = [p.grad for p in w.model.parameters() if p.grad is not None]
                recorder.classify(gradients, "gradients")
                del gradients
            recorder.phase("optimizer")
            if w.clip_norm is not None:
                foreach = True if variant.capability is not None else None
                nn.utils.clip_grad_norm_(w.model.parameters(), w.clip_norm, foreach=foreach)
            w.optimizer.step()
            classify_state(w.optimizer, variant, recorder)
    w.model.eval()
    for _ in range(STEPS if variant.inference else 1):
        recorder.phase("evaluation")
        moved = _moved(parts[0])
        start = len(recorder.order)
        with torch.no_grad(), autocast(w, variant):
            output = w.predict(w.model, moved) if w.predict is not None else w.loss(w.model, moved)
        recorder.classify_since(start, "activations")
        del output


def _moved(batch: Batch) -> Batch:
    """What `to(device)` makes: copies."""
    return map_tensors(batch, torch.clone)


def classify_state(optimizer: torch.optim.Optimizer, variant: Variant, recorder: Recorder) -> None:
    state = list(optimizer.state.values())
    recorder.classify(
        (v for one in state for v in one.values() if isinstance(v, Tensor)), "optimizer"
    )
    if variant.capability is not None and variant.optimizer != "fused":
        # Unless it is fused or capturable, an optimizer counts its steps on the CPU.
        steps = (one.get("step") for one in state)
        recorder.hide(step for step in steps if isinstance(step, Tensor) and step.ndim == 0)


def in_order_of_moving(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers in the order in which `Module.to` moves them."""
    for child in module.children():
        yield from in_order_of_moving(child)
    yield from (p for p in module._parameters.values() if p is not None)
    yield from (b for b in module._buffers.values() if b is not None)


@contextmanager
def without_collecting() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _without_onednn() -> Iterator[None]:
    """OneDNN's recurrent layers have a workspace whose size nobody knows before they ran."""
    was_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was_enabled)


class _Unfilled(TorchDispatchMode):
    """Leaves large tensors unfilled: nobody reads a weight that is to become fake."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._opname in _FILLS and args[0].numel() >= _LARGE:
            return args[0]
        return func(*args, **(kwargs or {}))


def parameter_bytes(workload: Workload) -> int:
    """Weights, as many gradients, and the two moments of an Adam; one for SGD with momentum."""

    def total(of: Iterable[Tensor]) -> int:
        return sum(int(tensor.nbytes) for tensor in of)

    weights = total(workload.model.parameters())
    defaults = workload.optimizer.defaults
    copies = 2 if "betas" in defaults else 1 if defaults.get("momentum") else 0
    return weights * (2 + copies) + total(workload.model.buffers())
