"""Gradients of parts of a batch from its layers, against a backward pass of each part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch.integrations.command as command

SITE = Path(command.__file__).parent / "site"
PARTS = 4


@pytest.fixture(autouse=True)
def _agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


class TimeFirst(nn.Module):
    """A layer whose input is (time, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Flat(TimeFirst):
    """A layer whose input is (batch * time, features), behind one that shows their order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x).flatten(0, 1)).view(len(x), -1)


def made(kind: str, examples: int) -> tuple[nn.Module, Tensor]:
    """Return a model with one layer of up to 16 units, and a batch for it."""
    torch.manual_seed(0)
    if kind == "embedding":
        return nn.Embedding(11, 7, padding_idx=0), torch.randint(11, (examples, 9))
    model, shape = {
        "linear": (nn.Linear(6, 5), (6,)),
        "sequence": (nn.Linear(6, 5, bias=False), (9, 6)),
        "time first": (TimeFirst(), (9, 6)),
        "flat": (Flat(), (9, 6)),
        "1d": (nn.Conv1d(3, 5, 3, padding=1), (3, 9)),
        "2d": (nn.Conv2d(3, 5, 3, stride=2, dilation=2), (3, 11, 12)),
        "3d": (nn.Conv3d(2, 3, 2), (2, 4, 5, 4)),
        "in place": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)), (6,)),
    }[kind]
    return model, torch.randn(examples, *shape)


def squares_of(
    loss: Callable[[Tensor], Tensor], batch: Tensor, weights: list[Tensor]
) -> tuple[float, list[float]]:
    """Return the squared norms of the gradient of all parts together, and of each."""
    size = len(batch) // PARTS
    found: list[Tensor] = []
    for part in batch[: PARTS * size].split(size):
        gradients = torch.autograd.grad(loss(part) * size / len(batch), weights)
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    whole = torch.stack(found).sum(0)
    return float(whole.square().sum()), [float(each.square().sum()) for each in found]


KINDS = ["linear", "sequence", "time first", "flat", "1d", "2d", "3d", "in place", "embedding"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [16, 19])
def test_parts_are_those_of_backward_passes(kind: str, examples: int) -> None:
    from _rightbatch_agent.layers import LayerParts

    model, batch = made(kind, examples)
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]

    def loss(x: Tensor) -> Tensor:
        return model(x).flatten(1).square().sum(1).mean()

    def failed(error: Exception) -> None:
        raise error

    expected_gradients = torch.autograd.grad(loss(batch), weights)
    layers = LayerParts(torch, failed)
    state = torch.get_rng_state()
    layers.start()
    observed = loss(batch)
    layers.before_backward(examples)
    observed.backward()
    found = layers.squares()
    layers.stop()
    assert found is not None
    assert torch.equal(torch.get_rng_state(), state), "a training's random numbers stay"
    for weight, expected_gradient in zip(weights, expected_gradients, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, expected_gradient), "bit for bit"
    whole, parts, size = found
    expected, expected_parts = squares_of(loss, batch, weights)
    assert size == examples // PARTS
    assert float(whole) == pytest.approx(expected, rel=1e-4)
    assert parts.tolist() == pytest.approx(expected_parts, rel=1e-4)


def test_units_stand_for_the_whole_layer() -> None:
    from _rightbatch_agent.layers import LayerParts

    torch.manual_seed(0)
    model, batch = nn.Linear(6, 512), torch.randn(16, 6)
    layers = LayerParts(torch, lambda error: pytest.fail(str(error)))
    wholes = []
    for _ in range(32):  # 512 units in turns of 16
        layers.start()
        loss = model(batch).square().sum(1).mean()
        layers.before_backward(16)
        loss.backward()
        found: Any = layers.squares()
        wholes.append(float(found[0]))
        layers.stop()
    expected, _ = squares_of(lambda x: model(x).square().sum(1).mean(), batch, [model.weight])
    assert sum(wholes) / len(wholes) == pytest.approx(expected, rel=1e-4)


def observed(model: nn.Module, batch: Tensor, examples: int) -> Any:
    """Return what the layers of a model show in one step."""
    from _rightbatch_agent.layers import LayerParts

    layers = LayerParts(torch, lambda error: pytest.fail(str(error)))
    layers.start()
    loss = model(batch).square().mean()
    layers.before_backward(examples)
    loss.backward()
    found = layers.squares()
    layers.stop()
    return found


class Decoder(nn.Module):
    """Time first, then flattened: the rows of one example are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.decode = nn.GRU(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.recurrent(x)[0].flatten(0, 1))


def test_rows_whose_order_is_unknown_are_left_out() -> None:
    assert observed(Decoder(), torch.randn(32, 16, 6), examples=16) is None
    square = torch.randn(16, 16, 6)  # time and examples are as many
    assert observed(nn.Linear(6, 5), square, examples=16) is None
    assert observed(nn.Embedding(64, 5), torch.arange(64), examples=16) is None  # places
    assert observed(nn.Linear(6, 5), square[:, 0], examples=16) is not None


def test_checkpointed_layers_are_left_out_since_their_inputs_are_not_kept() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.layer, x, use_reentrant=False)

    model = Checkpointed(6, 6)
    model.layer = nn.Linear(6, 6)
    assert observed(model, torch.randn(16, 6, requires_grad=True), examples=16) is None


def test_an_input_is_not_held_after_its_gradient() -> None:
    import gc
    import weakref

    from _rightbatch_agent.layers import LayerParts

    layers = LayerParts(torch, lambda error: pytest.fail(str(error)))
    layer = nn.Linear(6, 6)
    x = torch.randn(16, 6)
    storage = weakref.ref(x.untyped_storage())
    layers.start()
    loss = layer(x).square().mean()
    layers.before_backward(16)
    del x
    loss.backward()
    gc.collect()
    assert storage() is None, "though the loss lives on"
    assert layers.squares() is not None
    layers.stop()


def test_inputs_without_a_batch_are_left_out() -> None:
    assert observed(nn.Linear(6, 5), torch.randn(6), examples=16) is None
    assert observed(nn.Conv2d(16, 5, 3), torch.randn(16, 8, 8), examples=16) is None
    assert observed(nn.Embedding(6, 5), torch.tensor(3), examples=16) is None


def test_of_many_layers_others_are_taken_in_each_step() -> None:
    from _rightbatch_agent.layers import LayerParts

    torch.manual_seed(0)
    layers = LayerParts(torch, lambda error: pytest.fail(str(error)))
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(100)))
    wholes = []
    for _ in range(4):
        layers.start()
        loss = model(torch.ones(16, 4) + torch.randn(16, 4)).square().mean()
        layers.before_backward(16)
        loss.backward()
        wholes.append(set(layers._found))
        layers.stop()
    every, *some = wholes
    assert len(every) == 100, "how many there are is known after the first step"
    assert all(30 <= len(each) <= 48 for each in some)
    assert set.union(*some) == every


def test_a_layer_that_is_used_twice_is_left_out() -> None:
    layer = nn.Linear(6, 6)
    assert observed(nn.Sequential(layer, layer), torch.randn(16, 6), examples=16) is None


def test_a_second_forward_pass_without_a_gradient_does_not_count() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)  # as for an accuracy, without no_grad
            return self.layer(x)

    model = Twice(6, 6)
    model.layer = nn.Linear(6, 6)
    assert observed(model, torch.randn(16, 6), examples=16) is not None
