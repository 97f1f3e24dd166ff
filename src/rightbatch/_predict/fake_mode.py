"""A `FakeTensorMode` for following: the same results with cheaper keys into its cache.

Following a step is tens of thousands of operators in Python, and most of the time of each goes into
the key under which the mode remembers results. No tensor here has symbolic sizes, and all are on
the CPU, so that a few properties are enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_layout: Any = vars(torch._C.TensorBase)["layout"].__get__  # FakeTensor's own is Python


class FollowMode(FakeTensorMode):
    """Accepts real tensors as arguments and converts them."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def _prep_args_for_hash(self, result: list[Any], args: Any, *rest: Any) -> None:
        """Append to `result` what of the arguments determines an operator's results."""
        if isinstance(args, dict):
            super()._prep_args_for_hash(result, args, *rest)
            return
        result += (type(args), len(args))
        for arg in args:
            if type(arg) is FakeTensor and arg.fake_mode is self and _is_plain(arg):
                result += (
                    arg.dtype,
                    arg.shape,
                    arg.stride(),
                    arg.storage_offset(),
                    arg.untyped_storage().nbytes(),
                    arg.requires_grad,
                    arg.is_conj(),
                    arg.is_neg(),
                    arg.is_inference(),
                )
            elif arg is None or isinstance(arg, int | float | bool | torch.dtype):
                result += (type(arg), arg)
            else:
                super()._prep_args_for_hash(result, (arg,), *rest)


def _is_plain(fake: FakeTensor) -> bool:
    return fake.constant is None and _layout(fake) == torch.strided and not fake.is_mkldnn
