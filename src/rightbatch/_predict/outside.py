"""What a process takes of a GPU beside its tensors: context, workspaces, communicators.

None of it can be seen in a trace, and most of it has no formula. Each entry has its source; where
there is no bound there is a band, and where even that is an assumption it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._predict.calibrate import Calibration

MIB = 2**20

CONTEXT = (287 * MIB, 500 * MIB)
"""The CUDA context, kernels loaded as they are used: 287 MB (pytorch #86509), 426 MiB on an RTX
6000 Ada (unsloth-zoo #1053), up to 500 in reports. Loaded eagerly, not the default: 667 MB."""
CUBLAS = 8_519_680
CUBLAS_FROM_HOPPER = 32 * MIB
"""One workspace per thread that multiplies: `parseChosenWorkspaceSize` in torch's CUDABlas.cpp, and
both sizes stand in recordings of real GPUs. `CUBLAS_WORKSPACE_CONFIG` changes it."""
COMMUNICATOR = 512 * MIB
"""NCCL with several GPUs: 0.5 GB or more per communicator, an assumption at its lower end."""
BUCKET = 25 * MIB
"""DDP copies the gradients into buckets of this size unless they are views of them."""
_CONVOLUTIONS = {"convolution", "conv_transpose", "cudnn_convolution", "mkldnn_convolution"}
_RECURRENT = {"lstm", "gru", "mkldnn_rnn_layer", "_thnn_fused_lstm_cell", "rnn_tanh", "rnn_relu"}


@dataclass(frozen=True)
class Outside:
    """Bytes beside the trace: `cublas` in the allocator, per thread; the others on top of it."""

    cublas: int
    context: tuple[int, int]
    convolutions: tuple[int, int]
    communication: int
    notes: tuple[str, ...]

    @property
    def low(self) -> int:
        return self.context[0] + self.convolutions[0] + self.communication

    @property
    def high(self) -> int:
        return self.context[1] + self.convolutions[1] + self.communication


def outside(
    capability: float,
    operators: tuple[str, ...],
    largest_tensor: int,
    gradient_bytes: int,
    processes: int,
    measured: Calibration | None = None,
) -> Outside:
    """What lies outside the trace of a step that calls `operators`, on one of `processes` GPUs.

    `measured` takes the place of the table's context and workspace.
    """
    notes, convolutions = [], (0, 0)
    if _CONVOLUTIONS & set(operators):
        # cuDNN may copy an input and an output into another layout; there is no general bound.
        convolutions = (0, 2 * largest_tensor)
        notes.append(
            "convolutions: cuDNN's workspaces are not known without the GPU; the band assumes up "
            "to two copies of the largest tensor"
        )
    if _RECURRENT & set(operators):
        notes.append(
            "recurrent layers: cuDNN's reserve is not known without the GPU; what the CPU keeps "
            "for the backward pass stands for it"
        )
    communication = 0
    if processes > 1:
        communication = COMMUNICATOR + gradient_bytes + BUCKET
        notes.append("several GPUs: one NCCL communicator and DDP's buckets are added (assumed)")
    context, cublas = CONTEXT, CUBLAS_FROM_HOPPER if capability >= 9 else CUBLAS
    if measured is not None:
        context = (measured.context_low_bytes, measured.context_high_bytes)
        cublas = measured.cublas_bytes
        notes.append(f"context and cuBLAS workspace as measured: {measured}")
    return Outside(
        cublas,
        context,
        convolutions,
        communication,
        tuple(notes),
    )
