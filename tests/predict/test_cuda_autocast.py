"""Under autocast, operators cast and allocate as on CUDA, although their tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._predict.cuda_autocast import _FP32, _FP32_RESULT, _HALF, _HALF_KERNELS, _PROMOTED
from rightbatch._predict.cuda_semantics import cuda_semantics
from rightbatch._predict.recorder import Recorder

F = nn.functional
N = 256
HALF, FULL = 2 * N * N, 4 * N * N
"""Bytes of a square of `N` in half and in full precision."""
UNARY = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan sqrt sin sigmoid tanh
relu trace sum mean prod
"""
Maker = Callable[..., Tensor]
"""Makes a tensor of ones of a shape."""


def of_half(h: Maker, f: Maker, zeros: Maker) -> dict[str, Callable[[], Tensor]]:
    """Operators on tensors in half precision; `f` makes them in full."""
    found: dict[str, Callable[[], Tensor]] = {
        name: partial(getattr(torch, name), h(4, 4)) for name in UNARY.split()
    }
    images, volume = h(1, 1, 4, 4), h(1, 1, 4, 4, 4)
    found |= {
        "pow": lambda: h(4) ** 2,
        "of a number": lambda: 2 ** h(4),
        "softplus": lambda: F.softplus(h(4)),
        "layer_norm": lambda: F.layer_norm(h(4, 4), (4,)),
        "group_norm": lambda: F.group_norm(h(2, 4, 4), 2),
        "rms_norm": lambda: F.rms_norm(h(4, 4), (4,)),
        "batch_norm": lambda: F.batch_norm(h(2, 4), f(4), f(4)),
        "sum in half": lambda: h(4, 4).sum(0, dtype=torch.float16),
        "softmax": lambda: h(4, 4).softmax(0),
        "log_softmax": lambda: h(4, 4).log_softmax(0),
        "norm": lambda: h(4, 4).norm(),
        "normalize": lambda: F.normalize(h(4, 4)),
        "cosine": lambda: F.cosine_similarity(h(4, 4), h(4, 4)),
        "cumsum": lambda: h(4, 4).cumsum(0),
        "logsumexp": lambda: h(4, 4).logsumexp(0),
        "cdist": lambda: torch.cdist(h(4, 4), h(4, 4)),
        "mse": lambda: F.mse_loss(h(4), h(4)),
        "cross_entropy": lambda: F.cross_entropy(h(4, 4), zeros(4)),
        "logits": lambda: F.binary_cross_entropy_with_logits(h(4), h(4)),
        "addcmul": lambda: torch.addcmul(h(4), h(4), h(4)),
        "mixed addcmul": lambda: torch.addcmul(f(4), h(4), h(4)),
        "atan2": lambda: torch.atan2(h(4), f(4)),
        "cross": lambda: torch.cross(h(2, 3), f(2, 3), dim=1),
        "dot": lambda: torch.dot(h(4), f(4)),
        "tensordot": lambda: torch.tensordot(h(4, 4), f(4, 4)),
        "bilinear layer": lambda: F.bilinear(h(2, 3), f(2, 3), f(4, 3, 3)),
        "scatter_add": lambda: f(4).scatter_add(0, zeros(4), h(4)),
        "grid_sample": lambda: F.grid_sample(images, h(1, 2, 2, 2), align_corners=False),
        "mixed grid_sample": lambda: F.grid_sample(images, f(1, 2, 2, 2), align_corners=False),
        "cat": lambda: torch.cat([h(4), h(4)]),
        "mixed cat": lambda: torch.cat([h(4), f(4)]),
        "stack": lambda: torch.stack([h(4), h(4)]),
        "reflect": lambda: F.pad(images, (1,) * 4, "reflect"),
        "replicate": lambda: F.pad(images, (1,) * 4, "replicate"),
        "avg_pool3d": lambda: F.avg_pool3d(volume, 2),
        "max_pool3d": lambda: F.max_pool3d(volume, 2),
        "adaptive_avg_pool3d": lambda: F.adaptive_avg_pool3d(volume, 2),
        "max_unpool2d": lambda: F.max_unpool2d(h(1, 1, 2, 2), zeros(1, 1, 2, 2), 2),
        "antialias": lambda: F.interpolate(images, scale_factor=2, mode="bilinear", antialias=True),
        "trilinear": lambda: F.interpolate(volume, scale_factor=2, mode="trilinear"),
        "gelu": lambda: F.gelu(h(4)),
    }
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        found[mode] = partial(F.interpolate, images, scale_factor=2, mode=mode)
    return found


def of_full(f: Maker) -> dict[str, Callable[[], Tensor]]:
    """Operators on tensors in full precision."""
    image, filters = f(1, 4, 8, 8), f(4, 4, 3, 3)
    return {
        "mv": lambda: torch.mv(f(4, 4), f(4)),
        "addmv": lambda: torch.addmv(f(4), f(4, 4), f(4)),
        "addr": lambda: torch.addr(f(4, 4), f(4), f(4)),
        "mm": lambda: f(4, 4) @ f(4, 4),
        "einsum": lambda: torch.einsum("ij,jk->ik", f(4, 4), f(4, 4)),
        "linear": lambda: F.linear(f(4, 4), f(4, 4)),
        "baddbmm": lambda: torch.baddbmm(f(2, 4, 4), f(2, 4, 4), f(2, 4, 4)),
        "conv": lambda: F.conv2d(image, filters),
        "same conv": lambda: F.conv2d(image, filters, padding="same"),
        "conv_transpose": lambda: F.conv_transpose2d(image, filters),
        "prelu": lambda: F.prelu(f(4), f(1)),
        "attention": lambda: F.scaled_dot_product_attention(*[f(1, 2, 4, 8)] * 3),
    }


def types_on(device: str) -> dict[str, torch.dtype]:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(*shape, dtype=dtype, device=device)

    half = partial(ones, dtype=torch.float16)
    zeros = partial(torch.zeros, dtype=torch.long, device=device)
    return {name: run().dtype for name, run in (of_half(half, ones, zeros) | of_full(ones)).items()}


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """Autocast for fake tensors on CUDA; `torch.autocast` disables itself without a GPU."""
    torch.set_autocast_dtype("cuda", torch.float16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.fixture(autouse=True)
def ordinary_algorithms() -> Iterator[None]:
    """`interpolate` has another formula for deterministic algorithms, which a training may set."""
    was_set = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(was_set, warn_only=warns)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_results_have_the_types_of_fake_tensors_on_cuda() -> None:
    try:
        with FakeTensorMode(), autocast_of_cuda():
            expected = types_on("cuda")
    except (RuntimeError, AssertionError) as error:
        pytest.skip(f"this PyTorch is built without CUDA: {error}")
    with cuda_semantics(8.0, is_fake=True), FakeTensorMode(), torch.autocast("cpu", torch.float16):
        found = types_on("cpu")
    assert found == expected
    assert {torch.float16, torch.float32} == {*expected.values()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_tensors_have_the_same_types_where_the_cpu_has_kernels() -> None:
    with cuda_semantics(8.0, is_fake=True), FakeTensorMode(), torch.autocast("cpu", torch.float16):
        fake = types_on("cpu")
    with cuda_semantics(8.0, is_fake=False), torch.autocast("cpu", torch.float16):
        real = types_on("cpu")
    differing = {name for name, dtype in real.items() if fake[name] != dtype}
    assert differing == {"avg_pool3d", "max_unpool2d", "grid_sample"}


def allocated(
    function: Callable[[Tensor], Any], dtype: torch.dtype = torch.float16, *, autocast: bool = True
) -> list[int]:
    """The bytes of what `function` allocates for a square of this type."""
    with ExitStack() as stack:
        stack.enter_context(cuda_semantics(8.0, is_fake=True))
        stack.enter_context(FakeTensorMode())
        x = torch.zeros(N, N, dtype=dtype)
        if autocast:
            stack.enter_context(torch.autocast("cpu", torch.float16))
        recorder = stack.enter_context(Recorder())
        recorder.hold([x], "other")
        kept = function(x)
        trace = recorder.trace()
    del kept
    return sorted(size for size in trace.sizes[1:] if size >= HALF)


def cross_entropy(x: Tensor) -> Tensor:
    """Ask `log_softmax` for the type of its input, and `nll_loss` copies the result into fp32."""
    return F.cross_entropy(x, torch.zeros(N, dtype=torch.long))


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        # The kernels read fp16 and write fp32.
        (lambda x: x.softmax(-1), [FULL]),
        (lambda x: F.log_softmax(x, -1), [FULL]),
        (lambda x: x.sum(0), []),
        (lambda x: x.sum(), []),
        (lambda x: torch.linalg.vector_norm(x, dim=0), []),
        (lambda x: x.norm(dim=0), []),
        # The input is copied into fp32.
        (lambda x: x.pow(2), [FULL, FULL]),
        (cross_entropy, [HALF, FULL]),
        (lambda x: F.layer_norm(x, (N,)), [FULL, FULL]),
        (lambda x: F.interpolate(x[None, None], scale_factor=2), [FULL, 4 * FULL]),
        (lambda x: torch.addcmul(torch.zeros(N), torch.zeros(N), x), [FULL, FULL]),
        # The CPU's autocast casts these, CUDA's does not.
        (lambda x: F.pad(x[None, None], (1, 1, 1, 1), "reflect"), [2 * (N + 2) ** 2]),
        (lambda x: torch.cat([x, x]), [2 * HALF]),
        (lambda x: torch.cat([x, torch.zeros(N, N)]), [FULL, 2 * FULL]),
        (lambda x: F.avg_pool3d(x.view(1, 4, 4, 64, 64), (1, 1, 1)), [HALF]),
    ],
)
def test_what_is_allocated_in_half_precision(
    function: Callable[[Tensor], Any], sizes: list[int]
) -> None:
    assert allocated(function) == sizes


def test_a_softmax_of_bfloat16_copies_its_input_and_one_in_half_precision_does_not() -> None:
    def softmax(x: Tensor) -> Tensor:
        return F.softmax(x, -1, dtype=torch.float32)

    assert allocated(softmax, autocast=False) == [FULL]
    assert allocated(softmax, torch.bfloat16, autocast=False) == [FULL, FULL]
    assert allocated(lambda x: x.softmax(-1), autocast=False) == [HALF]


def test_every_name_is_one_that_pytorch_casts() -> None:
    def casts(key: str) -> set[str]:
        names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
        return {name.removeprefix("aten::").partition(".")[0] for name in names}

    on_cuda, on_cpu = casts("AutocastCUDA"), casts("AutocastCPU")
    assert {*" ".join((_FP32, _FP32_RESULT, _PROMOTED, _HALF)).split()} <= on_cuda
    assert {*_HALF_KERNELS.split()} <= on_cpu - on_cuda


def test_outside_the_lists_of_the_cpu_are_back() -> None:
    def kind() -> torch.dtype:
        with FakeTensorMode(), torch.autocast("cpu", torch.float16):
            return F.pad(torch.zeros(1, 1, 4, 4).half(), (1,) * 4, "reflect").dtype

    assert kind() == torch.float32
    with cuda_semantics(8.0, is_fake=True):
        assert kind() == torch.float16
    assert kind() == torch.float32
