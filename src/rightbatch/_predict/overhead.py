"""The GPU memory of a process besides its tensors: context, workspaces and communicators.

None of it is in a trace, and most of it has no formula. Each value has its source; values without
a known bound are intervals, and assumptions are marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._predict.calibrate import Calibration
from rightbatch._predict.options import Sharding

MIB = 2**20

CONTEXT = (287 * MIB, 500 * MIB)
"""The CUDA context with lazily loaded kernels: 287 MB (pytorch #86509), 426 MiB on an RTX 6000 Ada
(unsloth-zoo #1053), up to 500 in reports. With eager loading, not the default: 667 MB."""
CUBLAS = 8_519_680
CUBLAS_FROM_HOPPER = 32 * MIB
"""One workspace per thread with a matrix product: `parseChosenWorkspaceSize` in torch's
CUDABlas.cpp; both sizes are in recordings of real GPUs. `CUBLAS_WORKSPACE_CONFIG` changes it."""
COMMUNICATOR = 512 * MIB
"""NCCL with several GPUs: 0.5 GB or more per communicator; this lower end is an assumption."""
BUCKET = 25 * MIB
"""DDP copies the gradients into buckets of this size unless they are views of them."""
_CONVOLUTIONS = {"convolution", "conv_transpose", "cudnn_convolution", "mkldnn_convolution"}
_RECURRENT = {"lstm", "gru", "mkldnn_rnn_layer", "_thnn_fused_lstm_cell", "rnn_tanh", "rnn_relu"}


@dataclass(frozen=True)
class Overhead:
    """Bytes besides the trace's tensors.

    `cublas` is the workspace per thread, inside the allocator; the other values, as (low, high)
    where uncertain, are outside the allocator.
    """

    cublas: int
    context: tuple[int, int]
    convolutions: tuple[int, int]
    communication: int
    notes: tuple[str, ...]

    @property
    def low(self) -> int:
        """The lower bound of the bytes outside the allocator."""
        return self.context[0] + self.convolutions[0] + self.communication

    @property
    def high(self) -> int:
        """The upper bound of the bytes outside the allocator."""
        return self.context[1] + self.convolutions[1] + self.communication

    @property
    def kept(self) -> int:
        """The bytes that a search for the largest batch keeps for memory outside the allocator.

        Without `convolutions`: PyTorch leaves out the algorithms of cuDNN whose workspace is larger
        than what is free, and falls back to another one where an allocation fails
        (`getMaxWorkspaceSize` and `try_plans` in aten/src/ATen/native/cudnn), so a workspace takes
        the room that is left and ends no step.
        """
        return self.context[1] + self.communication


def process_overhead(
    capability: float,
    operators: tuple[str, ...],
    largest_tensor: int,
    gradient_bytes: int,
    processes: int,
    measured: Calibration | None = None,
    sharding: Sharding | None = None,
) -> Overhead:
    """Return the overhead of a step that calls `operators`, on one of `processes` GPUs.

    FSDP2, which `zero2` and `zero3` of `sharding` are, has its buffers among the tensors.

    `measured` replaces the table's values of context and workspace.
    """
    notes, convolutions = [], (0, 0)
    if _CONVOLUTIONS & set(operators):
        # cuDNN can copy an input and an output into another layout; there is no general bound.
        convolutions = (0, 2 * largest_tensor)
        notes.append(
            "convolutions: cuDNN's workspaces are unknown without the GPU; the interval assumes "
            "up to two copies of the largest tensor; the largest batch lets them have what is left"
        )
    if _RECURRENT & set(operators):
        notes.append(
            "recurrent layers: cuDNN's reserve is unknown without the GPU; the tensors that the "
            "CPU saves for the backward pass are counted instead"
        )
    communication = 0
    if processes > 1:
        communication = COMMUNICATOR
        if sharding in (None, "zero1"):
            communication += gradient_bytes + BUCKET
            notes.append("several GPUs: includes one NCCL communicator and DDP's buckets (assumed)")
        else:
            notes.append("several GPUs: includes one NCCL communicator (assumed)")
    context, cublas = CONTEXT, CUBLAS_FROM_HOPPER if capability >= 9 else CUBLAS
    if measured is not None:
        context = (measured.context_low_bytes, measured.context_high_bytes)
        cublas = measured.cublas_bytes
        notes.append(f"context and cuBLAS workspace as measured: {measured}")
    return Overhead(
        cublas,
        context,
        convolutions,
        communication,
        tuple(notes),
    )
