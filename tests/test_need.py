"""What a step needs by its fake tensors, against arithmetic on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightbatch import Workload
from rightbatch._memory.need import Need, need_of

WIDTH, LAYERS = 64, 8
LAYER = WIDTH * WIDTH * 4
WEIGHTS = LAYERS * LAYER
ROW = WIDTH * 4
"""Bytes of one activation of one example."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# Copies of all weights that are held (weights, gradients, moments), and copies of one layer's that
# exist while it is updated: Adam's `sqrt`, its quotient, and the quotient of the layer before.
COPIES = {"sgd": (2, 0), "momentum": (3, 0), "adam": (4, 3), "adamw": (4, 3)}


class Rows(Dataset[Tensor]):
    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.shape)


def perceptron(
    optimizer: str = "sgd", width: int = WIDTH, layers: int = LAYERS, **fields: Any
) -> Callable[[], Workload]:
    def factory() -> Workload:
        blocks = [(nn.Linear(width, width, bias=False), nn.ReLU()) for _ in range(layers)]
        model = nn.Sequential(*(part for block in blocks for part in block))
        made = OPTIMIZERS[optimizer](model.parameters())
        known = {"loss": lambda model, batch: model(batch).sum(), "data": Rows(width)}
        return Workload(model=model, optimizer=made, **(known | fields))

    return factory


def need(factory: Callable[[], Any], batch_size: int = 1) -> Need:
    found = need_of(factory, batch_size)
    assert found is not None
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_example_needs_weights_gradients_and_the_optimizers_state(optimizer: str) -> None:
    copies, temporary = COPIES[optimizer]
    found = need(perceptron(optimizer))
    assert found.how == "fake"
    # On top come the example and its gradient, two scalars, and Adam's counters: under a kilobyte.
    on_top = found.bytes - (copies * WEIGHTS + temporary * LAYER)
    assert ROW < on_top <= 2 * ROW + 2 * 4 + 4 * LAYERS


def test_each_further_example_needs_its_activations() -> None:
    sizes = (4096, 8192)
    small, large = (need(perceptron(), size).bytes for size in sizes)
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
    assert need(factory).bytes == pytest.approx((1 + 3) * LAYER + 4000, abs=4 * ROW)


def test_a_model_whose_weights_fit_nowhere_is_measured_all_the_same() -> None:
    width, layers = 65536, 13
    layer = width * width * 4
    assert layers * layer > 200 * 2**30
    found = need(perceptron("adamw", width=width, layers=layers))
    assert found.bytes == pytest.approx(4 * layers * layer + 3 * layer, rel=1e-5)
    assert found.how == "fake"


def test_what_cannot_be_followed_is_bounded_by_its_parameters() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found = model(batch).sum()
        return found * found.item()  # a fake tensor has no value

    for optimizer, (copies, _) in COPIES.items():
        found = need(perceptron(optimizer, loss=loss))
        assert found == Need(copies * WEIGHTS, "parameters", {})


def test_data_that_cannot_be_read_leaves_the_parameters() -> None:
    class Broken(Rows):
        def __getitem__(self, index: int) -> Tensor:
            raise OSError("no such file")

    assert need(perceptron(data=Broken(WIDTH))) == Need(2 * WEIGHTS, "parameters", {})


def test_a_factory_of_something_else_has_no_need() -> None:
    assert need_of(lambda: nn.Linear(2, 2)) is None


def test_half_precision_is_a_remedy_and_what_it_would_save_is_what_it_saves() -> None:
    full = need(perceptron(), 4096)
    half = need(perceptron(precision="bf16"), 4096)
    assert full.remedies["bf16 precision"] == half.bytes
    activations = 4096 * (LAYERS + 1) * ROW
    assert full.bytes - half.bytes == pytest.approx(activations / 2, rel=0.15)
    assert "bf16 precision" not in half.remedies


def test_checkpointing_is_a_remedy_where_a_stack_keeps_activations() -> None:
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
    found = need(factory, batch_size)
    per_example = (found.bytes - inner * WEIGHTS) / batch_size / ROW
    assert per_example == pytest.approx(1 + inner * LAYERS + 1, abs=0.01)
    left = (found.remedies["activation checkpointing"] - inner * WEIGHTS) / batch_size / ROW
    # Every block keeps its input; one block at a time computes its activations again.
    assert LAYERS + inner <= left <= LAYERS + inner + 4


def test_smaller_images_are_a_remedy_for_what_sees_images() -> None:
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

    found = need(factory, 64)
    smaller = found.remedies["images of half the width and height"]
    assert smaller == pytest.approx(found.bytes / 4, rel=0.02)
    # The image, what each ReLU keeps, and the gradient that is being computed.
    rows = (3 + 2 * channels + channels) * side * side * 4
    assert found.bytes == pytest.approx(64 * rows, rel=0.02)


def test_rows_of_numbers_have_no_smaller_images() -> None:
    assert "images of half the width and height" not in need(perceptron(), 64).remedies


def test_a_remedy_that_saves_next_to_nothing_is_none() -> None:
    # One example's row is nothing beside the weights, and there is nothing to save on it.
    assert need(perceptron("adam")).remedies == {}
    found = need(perceptron("adam"), 4096)
    assert found.remedies
    assert all(left < found.bytes for left in found.remedies.values())


def test_the_model_is_left_as_it_was() -> None:
    made: list[Workload] = []

    def factory() -> Workload:
        made.append(perceptron("adam")())
        return made[-1]

    need(factory, 64)
    model, optimizer = made[0].model, made[0].optimizer
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not optimizer.state
    assert not any("forward" in vars(module) for module in model.modules())
