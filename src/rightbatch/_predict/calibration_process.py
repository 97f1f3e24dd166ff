"""One process on a GPU, for `calibrate`: answers what it is, what is free, and loads kernels.

A line on standard input is a question (`who`, `free`, `load`), a line of JSON on standard output
its answer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(_ANSWERS[line.strip()]()), flush=True)


def who() -> dict[str, Any]:
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return {"gpu": None}
    major, minor = torch.cuda.get_device_capability()
    return {"gpu": torch.cuda.get_device_name(), "capability": major + minor / 10}


def free() -> dict[str, Any]:
    """The driver's free memory, with a context and nothing else in this process."""
    torch.cuda.synchronize()
    return {"free": torch.cuda.mem_get_info()[0]}


def load() -> dict[str, Any]:
    """The same after a step of every common kind: convolutions, attention, norms, an optimizer.

    `cublas` is what the first product took of the allocator beside its result, `reserved` what the
    allocator holds at the end, which is not the context's.
    """
    x = torch.ones(256, 256, device="cuda")
    before = torch.cuda.memory_allocated()
    y = x @ x
    cublas = torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(2)
    ).cuda()
    layer = nn.TransformerEncoderLayer(64, 4, batch_first=True).cuda()
    parameters = [*model.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(parameters)
    for precision in (torch.float32, torch.bfloat16):
        is_half = precision is torch.bfloat16
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=is_half):
            features = model(torch.ones(4, 3, 32, 32, device="cuda")).transpose(1, 2)
            output = layer(features).flatten(1)
            loss = nn.functional.cross_entropy(output, torch.zeros(4, device="cuda").long())
        loss.backward()
        optimizer.step()
    return free() | {"cublas": cublas, "reserved": torch.cuda.memory_reserved()}


_ANSWERS = {"who": who, "free": free, "load": load}

if __name__ == "__main__":
    main()
