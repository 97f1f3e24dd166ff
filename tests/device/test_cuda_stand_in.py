"""The CUDA device on a simulated GPU: the contract, and what each figure counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from cuda_stand_in import MIB, StandIn
from rightbatch import UsageError
from rightbatch._device import Device, is_out_of_memory, open_device
from rightbatch._device.caches import allocator_retries, release, synchronize
from rightbatch._device.cpu import CPU
from rightbatch._device.cuda import CUDA
from rightbatch.testing import DeviceContract


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    with StandIn().entered() as stand_in:
        yield stand_in


class TestCUDAOnStandIn(DeviceContract):
    allocation = 64 * MIB
    tolerance = 36 * MIB  # cuBLAS's workspace is reserved memory

    @pytest.fixture
    def device(self, gpu: StandIn) -> Device:
        return CUDA(0)


def allocated(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda:0")


def test_the_first_cuda_device_is_the_default_where_there_is_one(gpu: StandIn) -> None:
    assert open_device().name == open_device("cuda").name == "cuda:0"
    with pytest.raises(UsageError, match=r"cuda:1 is not available.*sees 1 CUDA"):
        open_device("cuda:1")


def test_capacity_is_what_the_driver_has_left_and_what_is_reserved_already() -> None:
    gpu = StandIn(4096 * MIB, context=400 * MIB, others=1000 * MIB, workspace=32 * MIB)
    with gpu.entered():
        device = CUDA(0)
        device.prepare()
        assert gpu.allocator.reserved == 32 * MIB
        assert device.capacity() == (4096 - 400 - 1000) * MIB


def test_on_an_integrated_gpu_the_memory_of_the_cpu_is_the_limit_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CPU, "capacity", lambda self: 700 * MIB)
    with StandIn(is_integrated=True).entered():
        device = CUDA(0)
        device.prepare()
        assert device.capacity() == 700 * MIB


def test_a_reading_tells_allocated_reserved_and_process_bytes_apart(gpu: StandIn) -> None:
    device = CUDA(0)
    device.prepare()
    device.reset_peak()
    held = allocated(5 * MIB)
    gpu.outside += 150 * MIB  # kernels that are loaded, which no allocator counts
    reading = device.read()
    # 5 MiB come out of a segment of 20, beside the workspace.
    assert reading.live_bytes == held.nbytes + 32 * MIB
    assert reading.peak_bytes == reading.detail["reserved_bytes"] == (20 + 32) * MIB
    assert reading.charged_bytes == reading.detail["process_bytes"] == (20 + 32 + 150) * MIB
    assert reading.detail["allocator_retries"] == 0


def test_what_is_charged_reaches_the_capacity_when_the_device_is_full(gpu: StandIn) -> None:
    device = CUDA(0)
    device.prepare()
    device.reset_peak()
    gpu.outside += 150 * MIB
    held: list[torch.Tensor] = []
    with suppress(torch.OutOfMemoryError):
        held.extend(allocated(100 * MIB) for _ in range(100))
    assert len(held) < 100
    assert 0 <= device.capacity() - device.read().charged_bytes < 100 * MIB


def test_what_was_freed_before_it_ran_out_counts_as_a_retry(gpu: StandIn) -> None:
    device = CUDA(0)
    device.prepare()
    device.reset_peak()
    del_me = allocated(2000 * MIB)
    del del_me
    held = allocated(2500 * MIB)
    assert device.read().detail["allocator_retries"] == 1
    assert allocator_retries(held.device) == 1
    assert allocator_retries(torch.device("cpu")) == 0


@pytest.mark.parametrize("driver_says_more", [True, False])
def test_a_limit_holds_whichever_total_the_share_is_taken_of(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch, driver_says_more: bool
) -> None:
    """PyTorch's releases differ in which of two totals they take the share of."""
    shown = gpu.total if driver_says_more else gpu.total + 64 * MIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (gpu.free, shown))
    gpu.total += 0 if not driver_says_more else -64 * MIB
    device = CUDA(0)
    device.prepare()
    assert device.enforce(1000 * MIB)
    assert gpu.fraction * max(shown, gpu.total) <= 1000 * MIB
    with pytest.raises(torch.OutOfMemoryError):
        allocated(970 * MIB)  # 32 more are the workspace's
    assert allocated(900 * MIB).nbytes == 900 * MIB


def test_a_limit_above_the_total_is_no_error(gpu: StandIn) -> None:
    device = CUDA(0)
    device.prepare()
    assert device.enforce(2 * gpu.total)
    assert gpu.fraction == 1.0


def test_compute_capability_is_none_on_rocm(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CUDA(0).capability == 9.0
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert CUDA(0).capability is None


def test_what_is_cached_is_released_and_the_device_waited_for(gpu: StandIn) -> None:
    held = allocated(100 * MIB)
    del held
    assert gpu.allocator.reserved == 100 * MIB
    synchronize(torch.device("cuda"))
    release(torch.device("cuda"))
    assert gpu.allocator.reserved == 0


def test_the_stand_in_itself_follows_tensors_through_a_training_step(gpu: StandIn) -> None:
    layer = torch.nn.Linear(256, 256).to("cuda")
    x = torch.ones(64, 256).cuda()
    assert layer.weight.device == x.device == torch.device("cuda", 0)
    parameters = gpu.allocator.allocated
    assert parameters == 256 * 256 * 4 + 1024 + 64 * 256 * 4
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_cuda
    assert gpu.allocator.allocated >= parameters + layer.weight.nbytes + 32 * MIB
    assert layer.weight.cpu().device.type == "cpu"
    assert not x.to("cpu").is_cuda
    with pytest.raises(torch.OutOfMemoryError) as caught:
        allocated(5000 * MIB)
    assert is_out_of_memory(caught.value)
