"""The precision of a workload's steps: autocast around the loss, and a GradScaler for fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rightbatch._workload.workload import Workload


def autocast(workload: Workload, device: str | torch.device) -> AbstractContextManager[Any]:
    """Return the context for the loss and `predict`."""
    if workload.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if workload.precision == "bf16" else torch.float16
    return torch.autocast(torch.device(device).type, dtype)


def scaler(workload: Workload, device: str | torch.device) -> torch.amp.GradScaler:
    """Return a GradScaler, disabled unless the precision is fp16."""
    kind = torch.device(device).type
    return torch.amp.GradScaler(kind, enabled=workload.precision == "fp16")
