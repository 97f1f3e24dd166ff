"""Limits of CUDA's kernels on a batch, which end a step with memory left.

A batch can fit into the memory of a GPU and still fail, with "invalid configuration argument" or
"Expected canUse32BitIndexMath". The limits below are those of PyTorch 2.9; each one has its source.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

FLASH = "the flash attention kernel takes at most 65,535 sequences"
DEPTHWISE = "depthwise convolutions in channels_last take tensors of at most 2^31 - 1 elements"
REFLECTION = "reflection padding takes tensors of at most 2^31 - 1 elements"
MOST = {FLASH: 2**16 - 1, DEPTHWISE: 2**31 - 1, REFLECTION: 2**31 - 1}
"""The largest value of each limited quantity.

Flash attention starts a block per sequence in a dimension of the grid that has 65,535 (pytorch
#146704; windowed attention has a sequence per window). Depthwise convolutions of more than 2^31
elements failed in any layout (pytorch #152816); by measurements of timm with PyTorch 2.9 they run
in the contiguous layout, and fail in channels_last, into which layer norms over channels and token
mixers bring their input. Reflection padding checks `canUse32BitIndexMath` (ReflectionPad.cu).
"""

Use = tuple[str, int]
"""A limited quantity, by its text, and its value."""


def limited_use(operator: Any, arguments: Any, result: Any) -> Use | None:
    """Return the limited quantity of an operator's call, if it has one."""
    if operator._opname == "_scaled_dot_product_flash_attention":
        return FLASH, int(arguments[0].shape[0])
    if operator._opname == "convolution" and _is_depthwise(arguments):
        return DEPTHWISE, max(arguments[0].numel(), result.numel())
    if operator._opname in ("reflection_pad1d", "reflection_pad2d"):
        return REFLECTION, arguments[0].numel()
    return None


def exceeded(uses: Iterable[Use]) -> str | None:
    """Return the text of the first limit that is exceeded."""
    return next((name for name, value in uses if value > MOST[name]), None)


def _is_depthwise(arguments: Any) -> bool:
    """Return whether a convolution is depthwise and its input in channels_last."""
    x, groups = arguments[0], arguments[8]
    return (
        isinstance(x, Tensor)
        and x.ndim == 4
        and groups == x.shape[1] > 1
        and suggest_memory_format(x) == torch.channels_last  # by strides, as cuDNN is called
    )
