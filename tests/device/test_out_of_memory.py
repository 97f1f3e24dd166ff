"""Out-of-memory messages of every backend, and messages that must not match."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest
import torch
from torch import nn

from rightbatch._device import died_out_of_memory, is_out_of_memory

MESSAGES = {
    "CUDA": "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.69 "
    "GiB of which 12.88 MiB is free. Including non-PyTorch memory, this process has 23.66 GiB "
    "memory in use.",
    "CUDA outside the allocator": "CUDA error: out of memory\nCUDA kernel errors might be "
    "asynchronously reported at some other API call",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN 9": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN's search": "Unable to find an engine to execute this computation",
    "HIP": "HIP out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of 63.98 "
    "GiB of which 0 bytes is free.",
    "HIP outside the allocator": "HIP error: out of memory",
    "hipBLAS": "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "MIOpen": "miopenStatusAllocFailed",
    "XPU": "XPU out of memory. Tried to allocate 64.00 GiB. GPU 0 has a total capacity of 15.91 "
    "GiB.",
    "MPS": "MPS backend out of memory (MPS allocated: 8.93 GiB, other allocations: 176.34 MiB, max "
    "allowed: 9.07 GiB). Tried to allocate 48.00 MiB on private pool. Use "
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may cause "
    "system failure).",
    "NPU": "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 29.50 GiB total capacity)",
    "NCCL": "NCCL Error 1: unhandled cuda error. Last error: NCCL error: out of memory",
    "CPU": "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)",
    "CPU on Windows": "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough "
    "memory: you tried to allocate 1099511627776 bytes.",
    "oneDNN": "could not create a primitive",
    "oneDNN's memory": "could not create a memory object",
    "C++": "std::bad_alloc",
    "a thread's stack": "can't start new thread",
    "a shared file": "unable to mmap 268435456 bytes from file </torch_1_2_3>: Cannot allocate "
    "memory (12)",
    "OpenMP": "libgomp: Thread creation failed: Resource temporarily unavailable",
}

OTHERS = {
    "shapes": "mat1 and mat2 shapes cannot be multiplied (8x512 and 256x10)",
    "channels": "Given groups=1, weight of size [64, 3, 3, 3], expected input[2, 4, 8, 8] to have "
    "3 channels, but got 4 channels instead",
    "BatchNorm": "Expected more than 1 value per channel when training, got input size "
    "torch.Size([1, 64, 1, 1])",
    "an index": "CUDA error: device-side assert triggered\nCUDA kernel errors might be "
    "asynchronously reported at some other API call",
    "a bad address": "CUDA error: an illegal memory access was encountered",
    "cuDNN's refusal": "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you "
    "passed in a non-contiguous input.",
    "cuBLAS' refusal": "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`",
    "cuBLAS' arguments": "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`",
    "no GPU": "Found no NVIDIA driver on your system.",
    "views": "view size is not compatible with input tensor's size and stride (at least one "
    "dimension spans across two contiguous subspaces). Use .reshape(...) instead.",
    "shared storage": "a leaf Variable that requires grad is being used in an in-place operation.",
    "overlapping memory": "unsupported operation: some elements of the input tensor and the "
    "written-to tensor refer to a single memory location.",
    "a worker": "DataLoader worker (pid 123) exited unexpectedly with exit code 1.",
    "nothing": "",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
def test_messages_of_backends_are_recognized(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert is_out_of_memory(RuntimeError(f"in the middle of it: {message}\nand more"))


def test_opencv_is_recognized_by_its_own_type() -> None:
    message = (
        "OpenCV(5.0.0) /io/opencv/modules/core/src/alloc.cpp:73: error: (-4:Insufficient memory) "
        "Failed to allocate 921600 bytes in function 'OutOfMemoryError'"
    )
    opencv = type("error", (Exception,), {"__module__": "cv2"})
    assert is_out_of_memory(opencv(message))
    assert not is_out_of_memory(opencv("(-215:Assertion failed) !ssize.empty()"))


@pytest.mark.parametrize("message", OTHERS.values(), ids=OTHERS.keys())
def test_other_errors_are_not_recognized(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))
    assert not died_out_of_memory(1, f"Traceback (most recent call last):\nRuntimeError: {message}")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 1.00 TiB for an array with shape (1099511627776,)"),
        torch.OutOfMemoryError("whatever it says"),
        torch.cuda.OutOfMemoryError("Allocation on device"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.ENOMEM, "in another language"),
        OSError("[Errno 12] Cannot allocate memory"),
    ],
    ids=repr,
)
def test_out_of_memory_types_are_recognized(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("CUDA out of memory"),
        ValueError("the log has no line 'CUDA out of memory'"),
        AssertionError("std::bad_alloc"),
        OSError(errno.ENOENT, "No such file or directory: 'memory.txt'"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        StopIteration(),
    ],
    ids=repr,
)
def test_another_type_of_error_with_a_message_is_not_recognized(
    error: BaseException,
) -> None:
    assert not is_out_of_memory(error)


def raised(error: BaseException, cause: BaseException, *, explicit: bool) -> BaseException:
    """Return `error`, raised while handling `cause`, or from it."""
    try:
        try:
            raise cause
        except BaseException as first:
            if explicit:
                raise error from first
            raise error  # noqa: B904  the implicit context is what is tested
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("explicit", [True, False])
def test_the_whole_chain_of_causes_is_searched(explicit: bool) -> None:
    outer: BaseException = RuntimeError(MESSAGES["CUDA"])
    for wrapper in (ValueError("in the model"), KeyError("in the loop"), Exception("in the loss")):
        outer = raised(wrapper, outer, explicit=explicit)
    assert is_out_of_memory(outer)
    shapes = raised(ValueError("in the model"), RuntimeError(OTHERS["shapes"]), explicit=explicit)
    assert not is_out_of_memory(shapes)


def test_a_cycle_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert not is_out_of_memory(one)


def test_other_real_errors_of_torch_on_the_cpu_are_not_recognized() -> None:
    def loss_of_shapes() -> None:
        nn.Linear(3, 4)(torch.zeros(2, 5))

    def one_example() -> None:
        nn.BatchNorm1d(4).train()(torch.zeros(1, 4))

    def label_out_of_range() -> None:
        nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))

    for action in (loss_of_shapes, one_example, label_out_of_range):
        with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
            action()
        assert not is_out_of_memory(caught.value), caught.value


def test_real_exhaustion_of_the_cpu_is_recognized(measured_cpu: dict[str, Any]) -> None:
    for what in ("filled", "empty"):
        assert "DefaultCPUAllocator" in measured_cpu[what]["message"]
        assert measured_cpu[what]["recognized"]
    assert measured_cpu["list"]["type"] == measured_cpu["bytes"]["type"] == "MemoryError"
    assert measured_cpu["list"]["recognized"] and measured_cpu["bytes"]["recognized"]


def test_a_real_convolution_without_room_is_recognized(measured_cpu: dict[str, Any]) -> None:
    failures = [failure for failure in measured_cpu["convolutions"] if failure is not None]
    assert failures
    assert all(failure["recognized"] for failure in failures), failures
    if torch.backends.mkldnn.is_available():
        assert any(failure["message"] == "could not create a primitive" for failure in failures)
    assert measured_cpu["wrong shape"]["recognized"] is False


def test_a_killed_process_died_out_of_memory() -> None:
    assert died_out_of_memory(-signal.SIGKILL, "")
    assert died_out_of_memory(-signal.SIGKILL, "some warning")


@pytest.mark.parametrize("signal_name", ["SIGABRT", "SIGSEGV"])
def test_an_aborted_process_died_out_of_memory_only_with_a_known_message(signal_name: str) -> None:
    code = -getattr(signal, signal_name)
    said = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  "
    assert died_out_of_memory(code, f"{said}std::bad_alloc\n")
    assert died_out_of_memory(code, MESSAGES["OpenMP"])
    assert not died_out_of_memory(code, "")
    assert not died_out_of_memory(code, "terminate called after throwing a 'c10::Error'")


def test_a_process_that_exited_did_not_die_out_of_memory() -> None:
    assert not died_out_of_memory(0, "")
    assert not died_out_of_memory(1, "Traceback (most recent call last):\nValueError: no")
