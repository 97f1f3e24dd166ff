"""CUDA's behaviour on CPU tensors: attention kernel, dropout mask, linear layers and autocast.

A step is followed with CPU tensors, fake or real, because their backward pass needs no driver.
Where PyTorch's behaviour depends on the device, the CPU kernels are replaced during a recording by
functions that behave like CUDA's. The choice of attention is from
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._predict.cuda_autocast import register_autocast, to_fp32
from rightbatch._predict.cuda_rms_norm import IS_FUSED, rms_norm


@contextmanager
def cuda_semantics(capability: float, *, is_fake: bool) -> Iterator[None]:
    """Make CPU operators behave like those of a GPU of this compute capability.

    `is_fake` says that tensors have no values, so that no CPU kernel has to take their types.
    Affects the whole process inside the context: use it in a recording's own process only.
    """
    library = torch.library.Library("aten", "IMPL")
    attention = _attention(capability, is_fake=is_fake)
    library.impl("scaled_dot_product_attention", attention, "AutogradCPU")
    library.impl("dropout", _dropout, "AutogradCPU")
    library.impl("linear", _linear, "AutogradCPU")
    if IS_FUSED:
        library.impl("rms_norm", rms_norm, "AutogradCPU")
    register_autocast(library, is_fake=is_fake)
    try:
        yield
    finally:
        library._destroy()


def as_on_cuda(optimizer: torch.optim.Optimizer) -> None:
    """Set the optimizer's default on CUDA: update all parameters in one call (`foreach`).

    With a learning rate that is a tensor the default is one parameter after the other, unless the
    optimizer is capturable (`torch.optim.adam.adam`, and the like).
    """
    for group in [optimizer.defaults, *optimizer.param_groups]:
        if isinstance(group.get("lr"), torch.Tensor) and not group.get("capturable"):
            continue
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True


def sum_of(operator: Any, arguments: Any) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Return shape, summed dimensions and element size of a sum whose kernel may use buffers."""
    if operator._opname != "sum" or not arguments or not arguments[0].is_floating_point():
        return None
    x = arguments[0]
    dims = arguments[1] if len(arguments) > 1 and arguments[1] else range(x.ndim)
    if not x.is_contiguous() or x.ndim == 0:
        return None
    return tuple(x.shape), tuple(d % x.ndim for d in dims), x.element_size()


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Apply dropout with a boolean mask like CUDA's; the CPU's mask has the input's type."""
    if not train or p == 0 or x.numel() == 0:
        return x
    return torch.ops.aten.native_dropout(x, p, train)[0]  # type: ignore[no-any-return]


def _attention(capability: float, *, is_fake: bool) -> Callable[..., Tensor]:
    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        kernel = attention_kernel(query, key, value, attn_mask, enable_gqa, capability)
        aten = torch.ops.aten
        if kernel != "math" and not is_fake and dropout_p == 0:
            # CUDA's fused kernels have none for real tensors on the CPU; this one saves as much.
            return aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
        if kernel != "math" and not is_fake:
            kernel = "math"
        if kernel == "flash":
            width = query.shape[-1]
            padding = -width % 8
            if padding:
                query, key, value = (
                    nn.functional.pad(t, (0, padding)) for t in (query, key, value)
                )
            out = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, scale=scale or width**-0.5
            )[0]
            return out[..., :width]  # type: ignore[no-any-return]
        if kernel == "efficient":
            bias = attn_mask
            if bias is not None and bias.dtype == torch.bool:
                bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, float("-inf"))
            if bias is not None:
                shape = (*query.shape[:-1], key.shape[-2])
                bias = bias.expand(shape)
            needs_grad = any(t.requires_grad for t in (query, key, value))
            return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
                query, key, value, bias, needs_grad, dropout_p, is_causal, scale=scale
            )[0]
        if attn_mask is None or is_causal or enable_gqa or (scale is not None and scale < 0):
            return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )[0]  # fmt: skip
        return _masked_attention(query, key, value, attn_mask, dropout_p, scale)

    return attention


def _masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout_p: float,
    scale: float | None,
) -> Tensor:
    """Return `_scaled_dot_product_attention_math`, which adds the mask in place.

    PyTorch's own adds it out of place as soon as a dispatch mode is active.
    """
    dtype = query.dtype
    q, k, v = (to_fp32(t) for t in (query, key, value))
    factor = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    scaled = q * factor  # kept until the end, as `q` is
    weights = torch.matmul(scaled, k.transpose(-2, -1) * factor)
    weights.add_(mask)
    weights = torch.ops.aten._safe_softmax(weights, -1)
    weights = torch.dropout(weights, dropout_p, train=dropout_p > 0)
    out = torch.matmul(weights, v).to(dtype)
    weights.to(dtype)  # the operator's second result
    return out


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer that adds its bias in place where `x` is not contiguous.

    PyTorch's own adds it out of place as soon as a dispatch mode is active.
    """
    if bias is None or x.ndim < 3 or x.is_contiguous():
        return torch.ops.aten.linear.default.decompose(x, weight, bias)  # type: ignore[no-any-return]
    return torch.matmul(x, weight.t()).add_(bias)


def attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    enable_gqa: bool,
    capability: float,
) -> str:
    """Return the kernel that CUDA selects: `flash`, `efficient` or `math`."""
    if query.ndim != 4 or query.shape[-1] != value.shape[-1]:
        return "math"
    half = query.dtype == torch.float16 or (query.dtype == torch.bfloat16 and capability >= 8.0)
    if half and mask is None and capability >= 8.0 and query.shape[-1] <= 256:
        return "flash"
    if enable_gqa or not (half or query.dtype == torch.float32):
        return "math"
    if mask is not None and mask.requires_grad:
        return "math"
    aligned = 4 if query.dtype == torch.float32 else 8
    return "efficient" if query.shape[-1] % aligned == 0 else "math"
