"""Opening devices by name."""

from __future__ import annotations

import pytest
import torch

from rightbatch import UsageError
from rightbatch._device import open_device


def test_the_cpu_is_always_available() -> None:
    assert open_device("cpu").name == "cpu"


def test_the_default_is_the_best_available_device() -> None:
    best = "cpu"
    if torch.backends.mps.is_available():
        best = "mps"
    if torch.cuda.is_available():
        best = "cuda:0"
    assert open_device().name == best


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "cuda:-1", "gpu", "CPU"])
def test_an_unknown_name_raises_an_error_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"valid devices are cpu, cuda, cuda:N and mps"):
        open_device(name)


def test_an_unavailable_device_raises_an_error_with_the_available_ones() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=rf"cuda:{count} is not available.*sees {count} CUDA"):
        open_device(f"cuda:{count}")
    if not torch.backends.mps.is_available():
        with pytest.raises(UsageError, match="mps is not available"):
            open_device("mps")
