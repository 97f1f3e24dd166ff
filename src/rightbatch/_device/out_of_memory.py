"""What running out of memory looks like, everywhere: the one place that knows.

Every entry is a message that a real backend prints, with where it comes from. A shape error, or
BatchNorm's "Expected more than 1 value per channel", is not in the table, and must never be.
"""

from __future__ import annotations

import errno
import signal

# (what the message contains, in lower case; who says it)
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
    ("could not create a primitive", "oneDNN: how a CPU convolution says it"),
    ("could not create a memory object", "oneDNN"),
    ("std::bad_alloc", "C++ on the CPU"),
    ("can't start new thread", "Python: no room for a thread's stack"),
    ("cannot allocate memory", "errno ENOMEM in words"),
    ("thread creation failed: resource temporarily unavailable", "libgomp"),
    ("unable to mmap", "c10: no address space for a file or a loader's batch"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or an error that it was raised from, says that memory ran out."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, MemoryError) or type(at).__name__ == "OutOfMemoryError":
            return True
        if isinstance(at, OSError) and at.errno == errno.ENOMEM:
            return True
        if isinstance(at, RuntimeError | OSError) and message_says_so(str(at)):
            return True
        at = at.__cause__ or at.__context__
    return False


def message_says_so(text: str) -> bool:
    """Whether the text holds one of the known messages."""
    lowered = text.lower()
    return any(message in lowered for message, _ in _MESSAGES)


def death_by_memory(return_code: int, stderr: str) -> bool:
    """Whether a process that ended without a word was killed for, or died of, want of memory.

    The kernel kills with SIGKILL. A C++ thread that cannot allocate aborts, having printed one of
    the known messages.
    """
    return return_code == -getattr(signal, "SIGKILL", 9) or message_says_so(stderr)
