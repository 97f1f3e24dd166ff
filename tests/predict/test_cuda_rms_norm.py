"""RMS normalization keeps what CUDA's kernel does: its input, and a number per row."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._predict.cuda_rms_norm import IS_FUSED
from rightbatch._predict.cuda_semantics import cuda_semantics
from rightbatch._predict.recorder import Recorder

ROWS, WIDTH = 64, 128
pytestmark = pytest.mark.skipif(not IS_FUSED, reason="this PyTorch has no such kernel on CUDA")


def test_the_kernel_allocates_its_result_and_a_number_per_row() -> None:
    with cuda_semantics(8.0, is_fake=True), FakeTensorMode():
        layer, x = nn.RMSNorm(WIDTH), torch.zeros(2, ROWS, WIDTH, requires_grad=True)
        with Recorder() as recorder:
            recorder.hold([x, layer.weight], "other")
            layer(x).sum().backward()
            sizes = recorder.trace().sizes[2:]
        assert x.grad is not None and x.grad.shape == x.shape
        assert layer.weight.grad is not None and layer.weight.grad.shape == (WIDTH,)
    full, row, weight = 4 * 2 * ROWS * WIDTH, 4 * 2 * ROWS, 4 * WIDTH
    assert [size for size in sizes if size > 4] == [row, full, full, weight]


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_a_weight_of_another_type_is_computed_in_parts() -> None:
    with cuda_semantics(8.0, is_fake=True), FakeTensorMode():
        x = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
        with Recorder() as recorder:
            out = nn.functional.rms_norm(x, (WIDTH,), torch.ones(WIDTH))
            sizes = recorder.trace().sizes
    assert (
        out.dtype == nn.functional.rms_norm(torch.zeros(1, 8).bfloat16(), (8,), torch.ones(8)).dtype
    )
    assert sum(size >= 4 * ROWS * WIDTH for size in sizes) > 1


def test_real_tensors_have_the_right_values() -> None:
    x, layer = torch.randn(ROWS, WIDTH), nn.RMSNorm(WIDTH)
    expected = layer(x)
    with cuda_semantics(8.0, is_fake=False):
        assert torch.equal(layer(x), expected)
