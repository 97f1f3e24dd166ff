"""What CUDA's sums allocate beside their result: partial sums, and a counter a column of blocks.

A dispatch mode does not see them, since the kernel takes them itself, but the allocator does: a
bias' gradient, summed over a large batch, takes some MiB for a moment, which moves what comes
after it. This is `setReduceConfig` of aten/src/ATen/native/cuda/Reduce.cuh. Its figures for one
case are in a recording of a real GPU: 1024×1024 summed over the first takes 8 MiB and 32 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

_WARP = 32
_THREADS = 512
_PER_THREAD_MIN, _PER_THREAD_MAX = 16, 256
MULTIPROCESSORS = 108
"""Of an A100; the result depends on it only where there are about as many outputs as threads."""
_THREADS_PER_MULTIPROCESSOR = 2048
_ACCUMULATOR = 4  # bytes: sums are in fp32, whatever the input


def reduction_buffers(
    shape: Sequence[int],
    reduced: Sequence[int],
    element_size: int,
    *,
    multiprocessors: int = MULTIPROCESSORS,
) -> tuple[int, int] | None:
    """Bytes of partial sums and of counters for the sum of a contiguous tensor; None without.

    `shape` are the input's dimensions, `reduced` the indices of those that are summed,
    `element_size` the bytes of an input element.

    >>> reduction_buffers([1024, 1024], [0], 4)
    (8388608, 32)
    """
    kept = [i for i in range(len(shape)) if i not in reduced and shape[i] > 1]
    summed = [i for i in reduced if shape[i] > 1]
    if not summed:
        return None
    outputs, inputs = prod(shape[i] for i in kept), prod(shape[i] for i in summed)
    is_fastest = not kept or max(summed) > max(kept)
    vector = 1
    first, second = (inputs, outputs) if is_fastest else (outputs, inputs)
    if is_fastest and not kept and first > 128:
        first //= 4  # loads four at once
    elif not is_fastest:
        innermost = shape[max(kept)]
        vector = next((v for v in (4, 2) if innermost % v == 0 and v * element_size <= 16), 1)
        first //= vector
    most = _THREADS // vector
    width = min(_floor_power(first, most), _WARP)
    height = min(_floor_power(second, most), most // width)
    width = min(_floor_power(first, most), most // height)

    step_input, step_output = (width, 1) if is_fastest else (1, width)
    per_thread = -(-inputs // step_input)
    if per_thread < height * _PER_THREAD_MIN and per_thread < _PER_THREAD_MAX:
        return None  # the input is not divided among warps, let alone among blocks
    step_input *= height
    per_thread = -(-inputs // step_input)
    grid = -(-(outputs // vector) // step_output)
    target = multiprocessors * (_THREADS_PER_MULTIPROCESSOR // (width * height))
    if per_thread < _PER_THREAD_MAX or grid > target:
        return None
    blocks = max(
        min(-(-target // grid), -(-per_thread // _PER_THREAD_MIN)),
        -(-per_thread // _PER_THREAD_MAX),
    )
    if blocks <= 1:
        return None
    partial = _ACCUMULATOR * outputs * blocks
    if not is_fastest:
        partial *= width * vector
    return partial, 4 * grid


def _floor_power(value: int, most: int) -> int:
    return 1 << (value.bit_length() - 1) if 0 < value < most else most if value else 1
