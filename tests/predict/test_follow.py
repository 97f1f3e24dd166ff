"""Allocations of a followed step, compared with closed forms and real runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from follow_models import (
    COPIES,
    LAYER,
    LAYERS,
    OPTIMIZERS,
    ROW,
    WEIGHTS,
    WIDTH,
    Rows,
    peak,
    perceptron,
)
from torch import Tensor, nn

from rightbatch import Workload
from rightbatch._errors import UsageError
from rightbatch._predict.build import parameter_bytes
from rightbatch._predict.follow import Follower
from rightbatch._predict.trace import Family, Trace
from rightbatch._predict.variant import Variant


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_example_needs_weights_gradients_and_the_optimizers_state(optimizer: str) -> None:
    copies, temporary = COPIES[optimizer]
    found = peak(perceptron(optimizer))
    # On top come the example, two gradients on their way, two scalars, and Adam's counters.
    on_top = found - (copies * WEIGHTS + temporary * LAYER)
    assert ROW < on_top <= 3 * ROW + 2 * 4 + 4 * LAYERS


def test_each_further_example_needs_its_activations() -> None:
    sizes = (4096, 8192)
    small, large = (peak(perceptron(), size) for size in sizes)
    # The example, what every ReLU keeps, and the gradient that is being computed.
    kept = 1 + LAYERS + 1
    assert large - small == (sizes[1] - sizes[0]) * kept * ROW
    # At the peak, when backward begins, there is the gradient of one layer's weights; and the loss
    # of this step and of the one before it, as in any loop.
    assert small == WEIGHTS + LAYER + sizes[0] * kept * ROW + 2 * 4


def test_shared_weights_and_buffers_count_once() -> None:
    def factory() -> Workload:
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
        model = nn.Sequential(layer, nn.ReLU(), layer)
        model.register_buffer("table", torch.zeros(1000))
        return Workload(
            model=model,
            loss=lambda model, batch: model(batch).sum(),
            optimizer=OPTIMIZERS["sgd"](model.parameters()),
            data=Rows(WIDTH),
        )

    # Beside the weights: each use has a gradient of its own until the two are added.
    assert peak(factory) == pytest.approx((1 + 3) * LAYER + 4000, abs=4 * ROW)


def test_a_model_too_large_for_memory_is_traced() -> None:
    width, layers = 65536, 13
    layer = width * width * 4
    assert layers * layer > 200 * 2**30
    found = peak(perceptron("adamw", width=width, layers=layers))
    assert found == pytest.approx(4 * layers * layer + 3 * layer, rel=1e-5)


def test_the_minimum_bytes_of_a_step_follow_from_its_parameters() -> None:
    for optimizer, (copies, _) in COPIES.items():
        assert parameter_bytes(perceptron(optimizer)()) == copies * WEIGHTS


def test_a_step_that_needs_values_is_followed_with_real_tensors_and_the_operator_is_named() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found = model(batch).sum()
        return found * found.item()  # a fake tensor has no value

    follower = Follower(perceptron("adamw", width=512, loss=loss))
    (trace,) = follower.traces([64], Variant())
    assert follower.how == "real"
    assert "_local_scalar_dense" in follower.notes[0]
    doubled = perceptron("adamw", width=512, loss=lambda model, batch: model(batch).sum() * 2.0)
    plain = peak(doubled, 64)
    assert trace.peak_bytes == pytest.approx(plain, rel=0.01)


def test_an_error_of_the_workload_is_raised_unchanged() -> None:
    class Broken(Rows):
        def __getitem__(self, index: int) -> Tensor:
            raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        Follower(perceptron(data=Broken(WIDTH))).traces([2], Variant())


def test_a_factory_of_another_type_raises_a_usage_error() -> None:
    with pytest.raises(UsageError, match="returned Linear, expected"):
        Follower(lambda: nn.Linear(2, 2))


def test_frozen_weights_have_neither_gradients_nor_state_as_with_adapters() -> None:
    def adapted() -> Workload:
        frozen, adapter = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        frozen.requires_grad_(False)
        model = nn.Sequential(frozen, nn.Tanh(), adapter)
        trained = [p for p in model.parameters() if p.requires_grad]
        return Workload(model, lambda m, x: m(x).sum(), torch.optim.AdamW(trained), Rows(WIDTH))

    (trace,) = Follower(adapted).traces([2], Variant(capability=8.0))
    found = trace.breakdown()
    assert found["parameters"] == 4 * (WIDTH * (WIDTH + 1) + WIDTH + 1)
    assert found["gradients"] == 4 * (WIDTH + 1)
    assert found["optimizer"] == 2 * 4 * (WIDTH + 1)


def test_half_precision_halves_the_activations() -> None:
    full = peak(perceptron(), 4096)
    half = peak(perceptron(), 4096, precision="bf16")
    assert half == peak(perceptron(precision="bf16"), 4096)
    activations = 4096 * (LAYERS + 1) * ROW
    assert full - half == pytest.approx(activations / 2, rel=0.15)


def test_checkpointing_keeps_the_inputs_of_blocks_and_one_blocks_activations() -> None:
    inner = 4

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(inner))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    def factory() -> Workload:
        model = nn.Sequential(*(Block() for _ in range(LAYERS)))
        return Workload(
            model=model,
            loss=lambda model, batch: model(batch).sum(),
            optimizer=OPTIMIZERS["sgd"](model.parameters()),
            data=Rows(WIDTH),
        )

    batch_size = 16384
    found = peak(factory, batch_size)
    per_example = (found - inner * WEIGHTS) / batch_size / ROW
    assert per_example == pytest.approx(1 + inner * LAYERS + 1, abs=0.01)
    less = peak(factory, batch_size, checkpointing=True)
    left = (less - inner * WEIGHTS) / batch_size / ROW
    # Every block keeps its input; one block at a time computes its activations again.
    assert LAYERS + inner <= left <= LAYERS + inner + 4


def test_images_of_half_the_sides_need_a_quarter() -> None:
    side, channels = 64, 16

    def factory() -> Workload:
        model = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(),
        )
        return Workload(
            model=model,
            loss=lambda model, batch: model(batch).sum(),
            optimizer=OPTIMIZERS["sgd"](model.parameters()),
            data=Rows(3, side, side),
        )

    found = peak(factory, 64)
    assert peak(factory, 64, halved=True) == pytest.approx(found / 4, rel=0.02)
    # The image, what each ReLU keeps, and the gradient that is being computed.
    rows = (3 + 2 * channels + channels) * side * side * 4
    assert found == pytest.approx(64 * rows, rel=0.02)


def single_layer() -> Workload:
    model = nn.Linear(WIDTH, WIDTH)
    made = OPTIMIZERS["sgd"](model.parameters())
    return Workload(model, lambda model, batch: model(batch).sum(), made, Rows(WIDTH))


def test_variants_without_images_or_blocks_raise_an_error() -> None:
    with pytest.raises(UsageError, match="no images"):
        peak(perceptron(), 64, halved=True)
    with pytest.raises(UsageError, match="two or more blocks"):
        peak(single_layer, 64, checkpointing=True)


def test_accumulation_needs_the_activations_of_a_part_only() -> None:
    whole, parts = peak(perceptron(), 8192), peak(perceptron(), 8192, accumulation=4)
    assert parts == pytest.approx(whole / 4, rel=0.05)


def test_the_model_and_the_optimizer_are_left_as_they_were() -> None:
    made: list[Workload] = []

    def factory() -> Workload:
        made.append(perceptron("adam")())
        return made[-1]

    peak(factory, 64, capability=8.0, checkpointing=True)
    model, optimizer = made[0].model, made[0].optimizer
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not optimizer.state
    assert optimizer.param_groups[0]["foreach"] is None
    assert not any("forward" in vars(module) for module in model.modules())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(16, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Convolutions, (3, 32, 32)),
    "encoder": (Encoder, (24, 32)),
    "recurrent": (Recurrent, (12, 16)),
}


def modelled(name: str, optimizer: str, precision: Any) -> Callable[[], Workload]:
    make, shape = MODELS[name]

    def factory() -> Workload:
        model = make()
        return Workload(
            model=model,
            loss=lambda model, batch: model(batch).float().square().mean(),
            optimizer=OPTIMIZERS[optimizer](model.parameters()),
            data=Rows(*shape),
            precision=precision,
        )

    return factory


def after_allocations(trace: Trace) -> list[int]:
    """Live bytes; autocast frees its copies of weights in no particular order."""
    levels = zip(trace.order, trace.live_bytes(), strict=True)
    return [level for event, level in levels if event >= 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_fake_and_real_peaks_are_equal(name: str, optimizer: str, precision: str) -> None:
    factory = modelled(name, optimizer, precision)
    fake, real = Follower(factory), Follower(factory)
    real.use_real_tensors(RuntimeError("for comparison"))
    (from_fake,), (from_real,) = (follower.traces([3], Variant()) for follower in (fake, real))
    assert from_fake.peak_bytes == from_real.peak_bytes
    assert after_allocations(from_fake) == after_allocations(from_real), "event by event"


@pytest.mark.parametrize("name", MODELS)
def test_two_sizes_determine_every_allocation_at_any_other(name: str) -> None:
    follower = Follower(modelled(name, "adamw", "fp32"))
    low, high, other = follower.traces([2, 4, 9], Variant(capability=8.0))
    assert low.is_like(high)
    family = Family(2, 4, low, high)
    assert family.at(9).sizes == other.sizes
    assert family.at(9).order == other.order
    assert family.at(2) == low


def test_the_breakdown_adds_up_to_the_peak_and_names_modules() -> None:
    follower = Follower(modelled("encoder", "adamw", "fp32"))
    (trace,) = follower.traces([64], Variant())
    weights = sum(p.nbytes for p in Encoder().parameters())
    parts = trace.breakdown()
    assert sum(parts.values()) == trace.peak_bytes
    assert parts["parameters"] == weights
    assert parts["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    modules = trace.activations()
    assert sum(modules.values()) == parts["activations"]
    assert any(name.startswith("layers.layers.1") for name in modules)


def test_repeated_steps_have_the_same_allocations() -> None:
    follower = Follower(modelled("encoder", "adamw", "fp32"))
    (trace,) = follower.traces([8], Variant())
    longer = trace.settled(3)
    assert longer.peak_bytes == trace.peak_bytes
    assert list(longer.live_bytes())[-1] == list(trace.live_bytes())[-1], "nothing leaks"
    step = len(longer.order) - len(trace.order)
    assert step > 0
    assert step % 3 == 0
    alive: set[int] = set()
    for event in longer.order:
        if event >= 0:
            assert event not in alive
            alive.add(event)
        else:
            alive.remove(~event)


@pytest.mark.parametrize(
    "loss",
    [
        nn.functional.mse_loss,
        nn.functional.smooth_l1_loss,
        nn.functional.soft_margin_loss,
        nn.functional.huber_loss,
        nn.functional.l1_loss,
        lambda x, target: nn.functional.binary_cross_entropy(x.sigmoid(), target),
        lambda x, target: nn.functional.layer_norm(x.bfloat16(), (WIDTH,)).sum(),
    ],
)
def test_a_loss_allocates_the_same_with_fake_and_real_tensors(loss: Any) -> None:
    made = perceptron(loss=lambda model, batch: loss(model(batch), torch.zeros_like(batch)))
    fake, real = Follower(made), Follower(made)
    real.use_real_tensors(RuntimeError("for comparison"))
    (from_fake,), (from_real,) = (one.traces([64], Variant()) for one in (fake, real))
    assert fake.how == "fake"
    assert from_fake.sizes == from_real.sizes
