"""Operators allocate as on CUDA, although they run on the CPU."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from follow_models import (
    WEIGHTS,
    peak,
    perceptron,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._predict.cuda_semantics import attention_kernel, cuda_semantics
from rightbatch._predict.follow import Follower
from rightbatch._predict.recorder import Recorder
from rightbatch._predict.trace import Trace
from rightbatch._predict.variant import Variant


def recorded(function: Callable[[], Any], capability: float | None) -> Trace:
    with ExitStack() as stack:
        if capability is not None:
            stack.enter_context(cuda_semantics(capability, is_fake=True))
        recorder = stack.enter_context(Recorder())
        kept = function()
        trace = recorder.trace()
    del kept
    return trace


def test_dropout_on_cuda_keeps_a_boolean_mask() -> None:
    x = torch.ones(1000, requires_grad=True)
    on_cpu = recorded(lambda: nn.functional.dropout(x, 0.5), None)
    on_cuda = recorded(lambda: nn.functional.dropout(x, 0.5), 8.0)
    assert sum(on_cuda.sizes) == 4000 + 1000
    assert sum(on_cpu.sizes) > sum(on_cuda.sizes)


def test_autocast_on_cuda_computes_a_softmax_in_full_precision_and_a_product_in_half() -> None:
    x = torch.ones(4, 4)

    def types() -> tuple[torch.dtype, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            product = x @ x
            return product.dtype, product.softmax(-1).dtype, product.pow(2).dtype

    assert types() == (torch.bfloat16,) * 3
    with cuda_semantics(8.0, is_fake=False):
        assert types() == (torch.bfloat16, torch.float32, torch.float32)
    assert types() == (torch.bfloat16,) * 3, "and only while it is entered"


@pytest.mark.parametrize(
    ("dtype", "width", "masked", "capability", "kernel"),
    [
        (torch.bfloat16, 64, False, 8.0, "flash"),
        (torch.bfloat16, 64, False, 7.5, "math"),
        (torch.float16, 64, False, 7.5, "efficient"),
        (torch.float32, 64, False, 8.0, "efficient"),
        (torch.float32, 64, True, 8.0, "efficient"),
        (torch.float32, 7, False, 8.0, "math"),
        (torch.float64, 64, False, 8.0, "math"),
        (torch.bfloat16, 512, False, 8.0, "efficient"),
    ],
)
def test_attention_selects_the_kernel_that_cuda_selects(
    dtype: torch.dtype, width: int, masked: bool, capability: float, kernel: str
) -> None:
    q = torch.zeros(1, 2, 16, width, dtype=dtype)
    mask = torch.zeros(16, 16, dtype=dtype) if masked else None
    assert attention_kernel(q, q, q, mask, False, capability) == kernel


def test_attention_keeps_its_weights_only_in_the_math_kernel() -> None:
    def attend() -> Tensor:
        mode = FakeTensorMode()
        with mode:
            q = torch.zeros(1, 1, 512, 8, requires_grad=True)
            return nn.functional.scaled_dot_product_attention(q, q, q)

    weights = 512 * 512 * 4
    assert recorded(attend, 8.0).peak_bytes < weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_math_kernel_adds_a_mask_in_place(dtype: torch.dtype) -> None:
    """Its peak is two matrices of weights in fp32: the sum, and its softmax with `-inf` masked."""
    tokens = 512

    def attend(*, masked: bool) -> int:
        with FakeTensorMode():
            q = torch.zeros(1, tokens, 4, dtype=dtype)  # without heads no kernel is fused
            given = torch.zeros(1, tokens, tokens, dtype=dtype) if masked else None
            trace = recorded(
                lambda: nn.functional.scaled_dot_product_attention(q, q, q, given), 8.0
            )
        return trace.peak_bytes

    assert attend(masked=True) == attend(masked=False)

    q, mask = torch.randn(2, tokens, 4, dtype=torch.float32), torch.randn(2, tokens, tokens)
    expected = nn.functional.scaled_dot_product_attention(q, q, q, mask)
    with cuda_semantics(8.0, is_fake=False):
        found = nn.functional.scaled_dot_product_attention(q, q, q, mask)
        hidden = nn.functional.scaled_dot_product_attention(q, q, q, mask > 0)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(
        hidden, nn.functional.scaled_dot_product_attention(q, q, q, mask > 0), atol=1e-6
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_of_real_tensors_runs_and_keeps_no_weights(
    dtype: torch.dtype, masked: bool
) -> None:
    tokens = 512
    q = torch.randn(1, 2, tokens, 16, dtype=dtype, requires_grad=True)
    mask = torch.randn(tokens, tokens, dtype=dtype) if masked else None

    def attend() -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q, mask)

    expected = attend()
    with cuda_semantics(8.0, is_fake=False), Recorder() as recorder:
        recorder.hold([q, *([mask] if mask is not None else [])], "other")
        found = attend()
        kept = recorder.trace().sizes[2 if masked else 1 :]
    assert torch.allclose(found, expected, atol=1e-2)
    assert max(kept) < 2 * tokens * tokens * dtype.itemsize
    found.sum().backward()
    assert q.grad is not None


def test_a_linear_layer_adds_its_bias_in_place() -> None:
    layer = nn.Linear(64, 48)
    x = torch.randn(4, 64, 32).transpose(1, 2)
    trace = recorded(lambda: layer(x), 8.0)
    out = 4 * 4 * 32 * 48
    assert [size for size in trace.sizes if size == out] == [out]
    with cuda_semantics(8.0, is_fake=False):
        found = layer(x)
    assert torch.allclose(found, layer(x))
    found.sum().backward()
    bias = layer.bias.grad
    assert bias is not None and torch.allclose(bias, torch.full((48,), 128.0))


def test_on_cuda_an_optimizer_takes_all_parameters_at_once_unless_it_is_fused() -> None:
    at_once, fused = (
        peak(perceptron("adam"), capability=8.0, optimizer=o) for o in ("default", "fused")
    )
    loop = peak(perceptron("adam"), capability=8.0, optimizer="loop")
    assert at_once - fused == pytest.approx(WEIGHTS, rel=0.2), "a copy of all weights"
    assert fused < loop < at_once


def test_cublas_takes_a_workspace_forward_and_one_backward() -> None:
    (trace,) = Follower(perceptron()).traces([2], Variant(capability=8.0))
    names = [name for _, name in trace.phases]
    starts = [index for index, _ in trace.phases]
    assert len(trace.gemms) == 2
    first, second = (names[bisect_right(starts, at) - 1] for at in trace.gemms)
    assert (first, second) == ("forward", "backward")
