"""Buffers of CUDA's sums: partial sums, and one counter per column of blocks.

The kernel allocates them itself, so a dispatch mode does not see them, but the allocator does. A
bias' gradient, summed over a large batch, needs a few MiB temporarily, which changes the addresses
of later allocations. The formula is `setReduceConfig` of aten/src/ATen/native/cuda/Reduce.cuh. A
recording of a real GPU confirms one case: 1024×1024 summed over dimension 0 allocates 8 MiB and 32
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

_WARP = 32
_THREADS = 512
_PER_THREAD_MIN, _PER_THREAD_MAX = 16, 256
MULTIPROCESSORS = 108
"""Of an A100; it matters only if the number of outputs is close to the number of threads."""
_THREADS_PER_MULTIPROCESSOR = 2048
_ACCUMULATOR = 4  # bytes: sums are in fp32, whatever the input


def reduction_buffers(
    shape: Sequence[int],
    reduced: Sequence[int],
    element_size: int,
    *,
    multiprocessors: int = MULTIPROCESSORS,
) -> tuple[int, int] | None:
    """Return the bytes of partial sums and of counters for a sum; None if it needs no buffers.

    `shape` is the shape of the contiguous input, `reduced` the summed dimensions, `element_size`
    the bytes of an element.

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
        return None  # the input is not divided among warps, so not among blocks either
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
