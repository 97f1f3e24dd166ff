"""Accelerate: `Elastic` on objects that `Accelerator.prepare` returned.

::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = elastic(accelerator, model, optimizer, loss)
    for batch in loader:
        report = step(batch)
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from rightbatch._elastic import Elastic
from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._workload.batch import Batch


def elastic(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    loss: Callable[[nn.Module, Batch], Tensor],
    **options: Any,
) -> Elastic:
    """Return an `Elastic` over prepared objects; `options` are those of `Elastic`.

    Mixed precision and DDP stay as prepared. `Elastic` accumulates, so the loader's batch is the
    batch of the update.

    Raises:
        MissingExtraError: if accelerate is not installed.
        UsageError: for FSDP, DeepSpeed and Megatron, or with accumulation in the accelerator.
    """
    if find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", "transformers")
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType

    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(
            f"Elastic cannot retry a step with {kind.value}, whose forward pass communicates; use "
            "DDP, or a fixed micro-batch size from `rightbatch fit`"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            "gradient_accumulation_steps must be 1 with Elastic, which accumulates itself; give "
            "the loader the whole batch"
        )
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return Elastic(model, inner, loss, scaler=accelerator.scaler, **options)
