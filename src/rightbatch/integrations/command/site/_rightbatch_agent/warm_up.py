"""What a process starts once, before the memory of a training is measured."""

from __future__ import annotations

import random
from typing import Any


def warm_up(torch: Any) -> None:
    """Start what every training has, as `rightbatch._device.cpu.CPU.prepare` and a worker do.

    Importing may draw random numbers, so the generator is put back.
    """
    state = random.getstate()
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.sum().backward()
    torch.optim.AdamW([parameter]).step()
    x = torch.ones(256, 1024, requires_grad=True)
    (x @ x.T).sum().backward()
    random.setstate(state)
