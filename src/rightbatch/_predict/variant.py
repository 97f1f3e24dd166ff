"""Variants of a step that save memory: precision, optimizer, checkpointing, accumulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rightbatch._errors import UsageError
from rightbatch._predict.cuda_semantics import as_on_cuda
from rightbatch._predict.options import Sharding
from rightbatch._workload.batch import Batch, map_tensors, tensors
from rightbatch._workload.workload import Workload


@dataclass(frozen=True)
class Variant:
    """How a step is run; the defaults are the workload's own settings.

    `capability` is the GPU's compute capability, None for the CPU's own behaviour. `optimizer` is
    `default` (all parameters in one call on CUDA), `fused` or `loop`. `accumulation` is the number
    of micro-batches. `halved` halves the sides of images. `sharding` is what is sharded over
    `ranks` processes, and the step is that of the first of them.
    """

    capability: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    optimizer: Literal["default", "fused", "loop"] = "default"
    checkpointing: bool = False
    accumulation: int = 1
    halved: bool = False
    inference: bool = False
    sharding: Sharding | None = None
    ranks: int = 1


def autocast(w: Workload, variant: Variant) -> torch.autocast:
    """Return the autocast context of the variant's precision, or the workload's."""
    precision = variant.precision or w.precision
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast("cpu", dtype, enabled=precision != "fp32")


@contextmanager
def optimizer_as(optimizer: torch.optim.Optimizer, variant: Variant) -> Iterator[None]:
    """Select the variant's optimizer implementation inside the context."""
    names = ("foreach", "fused")
    groups = [optimizer.defaults, *optimizer.param_groups]
    kept = [{name: group[name] for name in names if name in group} for group in groups]
    for group in groups:
        if variant.optimizer == "fused" and "fused" in group:
            group.update(fused=True, foreach=False)
        elif variant.optimizer == "loop":
            group.update({name: False for name in names if name in group})
    if variant.capability is not None and variant.optimizer == "default":
        as_on_cuda(optimizer)
    try:
        yield
    finally:
        for group, before in zip(groups, kept, strict=True):
            group.update(before)


def half_images(batch: Batch) -> Batch:
    """Halve the sides of every image (floating point, shape (N, C, H, W) or more dimensions).

    Raises:
        UsageError: if the batch has no images.
    """
    if not any(leaf.ndim >= 4 and leaf.is_floating_point() for leaf in tensors(batch)):
        raise UsageError("the batch has no images (floating-point tensors of 4 or more dimensions)")

    def halve(leaf: Tensor) -> Tensor:
        if leaf.ndim < 4 or not leaf.is_floating_point():
            return leaf
        shape = [*leaf.shape[:2], *(max(side // 2, 1) for side in leaf.shape[2:])]
        return leaf.new_empty(shape)

    return map_tensors(batch, halve)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks for activation checkpointing: those of the outermost module lists."""
    stacks = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    long = [s for s in stacks if len(s) > 1]
    inner = {id(m) for s in long for m in s.modules() if m is not s}
    return [block for stack in long if id(stack) not in inner for block in stack]


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Apply activation checkpointing to the model's blocks inside the context.

    Raises:
        UsageError: if the model has no Sequential or ModuleList of two or more blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise UsageError(
            "activation checkpointing requires a Sequential or ModuleList of two or more blocks, "
            "and the model has none"
        )
    for block in blocks:
        block.forward = _recomputed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
