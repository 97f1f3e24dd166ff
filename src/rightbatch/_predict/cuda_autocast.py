"""CUDA's autocast for CPU tensors: which operators it casts, and what a cast costs.

The lists are from aten/src/ATen/autocast_mode.h. Operators that reduce in fp32 do so without a copy
of their input (`make_reduction` in aten/src/ATen/native/ReduceOpsUtils.h, and `_softmax` with
`half_to_float`), which halves the memory of an unfused attention.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map_only

_FP32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus
layer_norm native_layer_norm group_norm rms_norm cosine_similarity nll_loss nll_loss2d l1_loss
kl_div smooth_l1_loss huber_loss mse_loss binary_cross_entropy_with_logits soft_margin_loss
cosine_embedding_loss poisson_nll_loss hinge_embedding_loss margin_ranking_loss
triplet_margin_loss multi_margin_loss dist pdist cdist renorm logsumexp cumprod cumsum
linalg_matrix_norm upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
"""
"""Cast to fp32 (`AT_FORALL_FP32`; `cumprod` and `cumsum` copy their input themselves)."""
_FP32_RESULT = "prod softmax log_softmax sum linalg_vector_norm"
"""Called with `dtype=torch.float32` (`AT_FORALL_FP32_SET_OPT_DTYPE`)."""
_PROMOTED = """
addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put scatter_add tensordot
"""
"""Cast to the widest type among their arguments (`AT_FORALL_PROMOTE`)."""
_HALF = "addmv addr mv"
"""Cast to half precision (`AT_FORALL_LOWER_PRECISION_FP`), as far as the CPU's list has not these.
Recurrent cells, which are in it, are left as on the CPU: their weights would need a cache."""
_KEPT = """
_addmm_activation _native_multi_head_attention conv1d conv2d conv3d mkldnn_rnn_layer stft
"""
"""Cast by the CPU's autocast only, and left so: CUDA casts them under another name, or the CPU has
no half precision for them even without memory, as for all of `fft`."""
_HALF_KERNELS = """
adaptive_avg_pool3d adaptive_max_pool3d cat cross_entropy_loss fractional_max_pool2d
fractional_max_pool3d index_copy max_pool3d reflection_pad1d
reflection_pad2d replication_pad1d replication_pad2d replication_pad3d stack trace
"""
"""Cast by the CPU's autocast only, although the CPU has kernels for half precision."""
_HALVES = (torch.float16, torch.bfloat16)
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def register_autocast(library: torch.library.Library, *, is_fake: bool) -> None:
    """Register CUDA's casts for CPU tensors in `library`, until it is destroyed.

    With real tensors, operators keep the CPU's casts where it has no kernels for half precision.
    """
    on_cpu, on_cuda = _registered("AutocastCPU"), _registered("AutocastCUDA")
    policies = {
        _FP32: _in_fp32,
        _FP32_RESULT: _with_fp32_result,
        _PROMOTED: _promoted,
        _HALF: _in_half,
    }
    casts = {name: cast for names, cast in policies.items() for name in names.split()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # kernels are replaced, as intended
        for name in on_cuda:
            packet, _, overload = name.partition(".")
            if packet in casts and (is_fake or name not in on_cpu):
                operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
                library.impl(name, casts[packet](operator), "AutocastCPU")
        for name in on_cpu - on_cuda:
            packet = name.partition(".")[0]
            is_kept = packet in _KEPT.split() or packet.startswith("fft_")
            if packet in _HALF_KERNELS.split() or (is_fake and not is_kept):
                library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")
    if is_fake:
        for name in ("softmax", "log_softmax"):
            library.impl(f"{name}.int", _softmax(name), "AutogradCPU")


def _registered(key: str) -> set[str]:
    """Return the operators that autocast casts on a device, in the installed PyTorch."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.removeprefix("aten::") for name in names if name.startswith("aten::")}


def _in_fp32(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            args, kwargs = tree_map_only(Tensor, to_fp32, (args, kwargs))
            return operator(*args, **kwargs)

    return run


def _with_fp32_result(operator: Any) -> Callable[..., Any]:
    position = [argument.name for argument in operator._schema.arguments].index("dtype")
    is_keyword = operator._schema.arguments[position].kwarg_only

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            given = args[position] if len(args) > position else kwargs.get("dtype")
            if args[0].dtype in _HALVES and given is None:
                if is_keyword:
                    kwargs["dtype"] = torch.float32
                else:
                    args = (*args[:position], torch.float32)
            return operator(*args, **kwargs)

    return run


def _promoted(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            leaves = tree_leaves((args, kwargs))
            if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float32 for leaf in leaves):
                args, kwargs = tree_map_only(Tensor, to_fp32, (args, kwargs))
            return operator(*args, **kwargs)

    return run


def _in_half(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        half = torch.get_autocast_dtype("cpu")
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            args, kwargs = tree_map_only(
                Tensor, lambda t: t.to(half) if t.dtype == torch.float32 else t, (args, kwargs)
            )
            return operator(*args, **kwargs)

    return run


def _softmax(name: str) -> Callable[..., Tensor]:
    """Return `softmax` or `log_softmax`, whose CUDA kernel reads fp16 and writes fp32."""
    operator = getattr(torch.ops.aten, name).int
    fused = getattr(torch.ops.aten, f"_{name}")

    def run(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        if x.dtype == torch.float16 and dtype == torch.float32 and isinstance(x, FakeTensor):
            return fused(x, dim, True)  # type: ignore[no-any-return]
        return operator.decompose(x, dim, dtype)  # type: ignore[no-any-return]

    return run


def to_fp32(tensor: Tensor) -> Tensor:
    """Return a tensor of half precision in fp32, and others as they are."""
    return tensor.float() if tensor.dtype in _HALVES else tensor
