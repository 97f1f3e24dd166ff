"""CUDA's behaviour on CPU tensors: attention kernel, dropout mask and autocast.

A step is followed with CPU tensors, fake or real, because their backward pass needs no driver.
Where PyTorch's behaviour depends on the device, the CPU kernels are replaced during a recording by
functions that behave like CUDA's. The lists are from aten/src/ATen/autocast_mode.h
(`AT_FORALL_FP32`, `AT_FORALL_FP32_SET_OPT_DTYPE`), the choice of attention is from
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rightbatch._predict.reduction import reduction_buffers

# Cast to fp32 by CUDA's autocast, but not by the CPU's.
_FP32_NAMES = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus
layer_norm native_layer_norm group_norm cosine_similarity nll_loss nll_loss2d l1_loss kl_div
smooth_l1_loss huber_loss mse_loss binary_cross_entropy_with_logits soft_margin_loss
cosine_embedding_loss poisson_nll_loss hinge_embedding_loss margin_ranking_loss
triplet_margin_loss multi_margin_loss multilabel_margin_loss dist pdist cdist renorm logsumexp
prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
upsample_trilinear3d upsample_bicubic2d
"""
_HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def cuda_semantics(capability: float) -> Iterator[None]:
    """Make CPU operators behave like those of a GPU of this compute capability.

    Affects the whole process inside the context: use it in a recording's own process only.
    """
    library = torch.library.Library("aten", "IMPL")
    attention = _attention(capability)
    library.impl("scaled_dot_product_attention", attention, "AutogradCPU")
    library.impl("dropout", _dropout, "AutogradCPU")
    for name in _FP32_NAMES.split():
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            if "out" in overload or "dimname" in overload or "names" in overload:
                continue
            operator = getattr(packet, overload)
            if any("out" in argument.name for argument in operator._schema.arguments):
                continue
            full = name if overload == "default" else f"{name}.{overload}"
            if not torch._C._dispatch_has_kernel(f"aten::{full}"):
                continue  # TorchScript's operators on numbers
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{full}", "AutocastCPU"):
                continue  # already in the CPU's list
            library.impl(full, _in_fp32(operator), "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


def as_on_cuda(optimizer: torch.optim.Optimizer) -> None:
    """Set the optimizer's default on CUDA: update all parameters in one call (`foreach`)."""
    for group in [optimizer.defaults, *optimizer.param_groups]:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True


def temporaries(operator: Any, arguments: Any) -> tuple[int, ...]:
    """Return the bytes of each buffer that CUDA's kernel allocates besides its results."""
    if operator._opname != "sum" or not arguments or not arguments[0].is_floating_point():
        return ()
    x = arguments[0]
    dims = arguments[1] if len(arguments) > 1 and arguments[1] else range(x.ndim)
    if not x.is_contiguous() or x.ndim == 0:
        return ()
    buffers = reduction_buffers(x.shape, [d % x.ndim for d in dims], x.element_size())
    return buffers if buffers is not None else ()


def _in_fp32(operator: Any) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = tree_map_only(Tensor, _to_fp32, (args, kwargs))
            return operator(*args, **kwargs)

    return run


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Apply dropout with a boolean mask like CUDA's; the CPU's mask has the input's type."""
    if not train or p == 0 or x.numel() == 0:
        return x
    return torch.ops.aten.native_dropout(x, p, train)[0]  # type: ignore[no-any-return]


def _attention(capability: float) -> Callable[..., Tensor]:
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
        return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]

    return attention


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
