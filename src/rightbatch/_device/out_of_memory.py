"""Detect out-of-memory errors of every backend by type, errno or message.

Imports the standard library only, as `rightbatch._device.proc`, which says why.

Each entry of the table is a message of a real backend with its source. A shape error, or
BatchNorm's "Expected more than 1 value per channel", must never match.
"""

from __future__ import annotations

import errno
import signal

# (part of the message, in lower case; its source)
_MESSAGES: tuple[tuple[str, str], ...] = (
    ("cuda out of memory", "c10/cuda/CUDACachingAllocator.cpp"),
    ("hip out of memory", "the same file, built for ROCm"),
    ("xpu out of memory", "c10/xpu/XPUCachingAllocator.cpp"),
    ("mps backend out of memory", "aten/src/ATen/mps/MPSAllocator.mm"),
    ("npu out of memory", "torch_npu"),
    ("cuda error: out of memory", "cudaErrorMemoryAllocation outside the allocator"),
    ("hip error: out of memory", "hipErrorOutOfMemory"),
    ("cublas_status_alloc_failed", "cuBLAS: handle or workspace"),
    ("hipblas_status_alloc_failed", "hipBLAS"),
    ("cudnn_status_alloc_failed", "cuDNN"),
    ("cudnn_status_internal_error_device_allocation_failed", "cuDNN 9"),
    ("miopenstatusallocfailed", "MIOpen"),
    ("unable to find an engine to execute this computation", "cuDNN without room for a workspace"),
    ("nccl error: out of memory", "NCCL"),
    ("defaultcpuallocator: can't allocate memory", "c10/core/impl/alloc_cpu.cpp"),
    ("defaultcpuallocator: not enough memory", "the same on Windows"),
    ("could not create a primitive", "oneDNN: a CPU convolution"),
    ("could not create a memory object", "oneDNN"),
    ("std::bad_alloc", "C++ on the CPU"),
    ("can't start new thread", "Python: no room for a thread's stack"),
    ("cannot allocate memory", "strerror(ENOMEM)"),
    ("thread creation failed: resource temporarily unavailable", "libgomp"),
    ("(-4:insufficient memory)", "OpenCV, whose error is a plain Exception"),
    ("unable to mmap", "c10: no address space for a file or a loader's batch"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error`, or an error in its chain of causes, is an out-of-memory error."""
    visited: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        is_native = isinstance(cause, (RuntimeError, OSError))  # a tuple: Python 3.9 runs this too
        is_native = is_native or type(cause).__module__ == "cv2"
        if is_native and has_out_of_memory_message(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def has_out_of_memory_message(text: str) -> bool:
    """Return whether the text contains one of the messages of the table."""
    lowered = text.lower()
    return any(message in lowered for message, _ in _MESSAGES)


def died_out_of_memory(return_code: int, stderr: str) -> bool:
    """Return whether a process that ended without reporting an error ran out of memory.

    Linux kills with SIGKILL. A C++ thread that cannot allocate prints one of the messages of the
    table and aborts.
    """
    return return_code == -getattr(signal, "SIGKILL", 9) or has_out_of_memory_message(stderr)
