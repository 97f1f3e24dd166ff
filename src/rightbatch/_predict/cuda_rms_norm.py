"""RMS normalization as on CUDA: one kernel, which saves a number per row for the backward pass.

On the CPU it is six operators, of which the backward pass needs a whole input more
(`rms_norm_composite` in aten/src/ATen/native/layer_norm.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

IS_FUSED = hasattr(torch.ops.aten, "_fused_rms_norm_backward")
"""Whether CUDA has the kernel in the installed PyTorch."""


def rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Allocate what CUDA's kernel does; real tensors, and mixed types, take PyTorch's own path."""
    if not isinstance(x, FakeTensor) or (weight is not None and weight.dtype != x.dtype):
        return torch.ops.aten.rms_norm.default.decompose(x, shape, weight, eps)  # type: ignore[no-any-return]
    return _Fused.apply(x, shape, weight)  # type: ignore[no-any-return]


class _Fused(torch.autograd.Function):
    """Tensors of the right sizes, without values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None) -> Tensor:
        rows = x.shape[: x.ndim - len(shape)]
        scale = x.new_empty((*rows, *(1,) * len(shape)), dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        of_x, _, of_weight = ctx.needs_input_grad
        return (
            torch.empty_like(x) if of_x else None,
            None,
            torch.empty_like(weight) if of_weight else None,
        )
