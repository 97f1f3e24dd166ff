"""Classes that `predict` does not support raise an error with their name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rightbatch import Workload
from rightbatch._errors import UsageError
from rightbatch._predict.follow import Follower

WIDTH = 64


def of_package(package: str, base: type) -> Any:
    """Return a class that claims to be from `package`, which is not installed."""
    return type("Theirs", (base,), {"__module__": f"{package}.optim"})


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao", "deepspeed"])
def test_an_unsupported_optimizer_raises_an_error_with_its_name(package: str) -> None:
    optimizer = of_package(package, torch.optim.SGD)

    def theirs() -> Workload:
        model = nn.Linear(WIDTH, WIDTH)
        return Workload(
            model,
            lambda m, x: m(x).sum(),
            optimizer(model.parameters()),
            list(torch.zeros(4, WIDTH)),
        )

    with pytest.raises(UsageError, match=rf"not support {package}.optim.Theirs: "):
        Follower(theirs)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_sharded_and_distributed_models_raise_an_error_with_their_names() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def sharded() -> nn.Module:
        model = nn.Linear(WIDTH, WIDTH)
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        return model

    def workload(model: nn.Module) -> Workload:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Workload(
            model, lambda model, x: model(x).sum(), optimizer, list(torch.zeros(4, WIDTH))
        )

    with pytest.raises(UsageError, match=r"not support .*FSDPModule"):
        Follower(lambda: workload(sharded()))
    with pytest.raises(UsageError, match="--processes N adds the memory of DDP"):
        Follower(lambda: workload(DistributedDataParallel(nn.Linear(WIDTH, WIDTH))))
