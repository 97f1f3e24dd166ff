"""What may be served, and what becomes of a batch in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._serve.models.adapters import FunctionModel, TorchModel
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Image, Model
from rightbatch._serve.models.results import json_default
from rightbatch.testing import ModelContract


def mean_colours(images: list[Image]) -> list[Any]:
    return [image.mean((0, 1)) for image in images]


class Colours(nn.Module):
    """The oracle of a torch module: mean colours by a convolution, in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 3, 1, bias=False)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(3)[:, :, None, None])
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x_NCHW: Tensor) -> dict[str, Any]:
        assert not torch.is_grad_enabled()
        self.seen.append(tuple(x_NCHW.shape))
        mean_NC = self.drop(self.same(x_NCHW)).mean((2, 3))
        return {"mean": mean_NC, "parts": [mean_NC[:, 0], (mean_NC[:, 1], mean_NC[:, 2])]}


def pictures(count: int, shape: tuple[int, int] = (6, 8)) -> list[Image]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (*shape, 3), np.uint8) for _ in range(count)]


class TestFunction(ModelContract):
    @pytest.fixture
    def model(self) -> Model:
        return open_model(mean_colours)


class TestFile(ModelContract):
    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        file = tmp_path / "mine.py"
        file.write_text(
            "def predict(images):\n    return [{'sum': int(image.sum())} for image in images]\n"
        )
        return open_model(f"{file}:predict")


class TestTorch(ModelContract):
    @pytest.fixture
    def model(self) -> Model:
        return open_model(Colours())


def test_a_module_gets_rgb_from_0_to_1_in_groups_of_a_shape_and_its_order_is_kept() -> None:
    module = Colours().train()
    small, large = pictures(2), pictures(3, (10, 4))
    images = [large[0], small[0], large[1], small[1], large[2]]
    results = TorchModel(module)(images)
    assert sorted(module.seen) == [(2, 3, 6, 8), (3, 3, 10, 4)]
    for image, result in zip(images, results, strict=True):
        mean = image.mean((0, 1)) / 255
        assert np.allclose(result["mean"], mean, atol=1e-6)
        first, (second, third) = result["parts"]
        assert np.allclose([first, second, third], mean, atol=1e-6)


def test_a_module_is_trained_on_as_before_once_it_is_closed() -> None:
    module = Colours().train()
    module.same.eval()
    model = TorchModel(module)
    assert not any(part.training for part in module.modules())
    model.close()
    assert module.training
    assert module.drop.training
    assert not module.same.training


def test_a_half_module_gets_halves() -> None:
    class Kind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == self.scale.dtype
            return x.amax((1, 2, 3)) * self.scale

    results = open_model(Kind().half())([np.full((2, 2, 3), 255, np.uint8)])
    assert results == [torch.tensor(1.0, dtype=torch.float16)]


def test_a_module_whose_file_is_named_is_a_module(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\nnet = nn.Flatten()\n")
    model = open_model(f"{file}:net", device="cpu")
    assert isinstance(model, TorchModel)
    assert [len(one) for one in model(pictures(2))] == [144, 144]


def test_a_detector_of_torchvision_gives_a_mapping_for_every_image() -> None:
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": torch.zeros(k, 4)} for k in range(len(x))]

    assert [len(one["boxes"]) for one in open_model(Detector())(pictures(3))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(3), r"first axis has length 2 \(the images\), got shape \(3,\)"),
        (torch.zeros(()), r"got shape \(\)"),
        ((torch.zeros(2), "text"), "got str"),
        ([{"a": 1}], r"must return one result per image \(2\), got 1"),
        ({}, r"must return one result per image \(2\), got 0"),
    ],
)
def test_a_module_that_gives_no_part_for_each_image_is_refused(output: Any, said: str) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output

    with pytest.raises(rb.UsageError, match=rf"Wrong .*{said}"):
        open_model(Wrong())(pictures(2))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1], r"wrong must return one result per image \(2\), got 1"),
        ("ab", r"a list with one result per image \(2\), got str"),
        (np.zeros(2), r"got ndarray; return list\(...\) of it"),
        (None, "got NoneType"),
    ],
)
def test_a_function_must_return_a_list_with_one_for_each(returned: Any, said: str) -> None:
    def wrong(images: list[Image]) -> Any:
        return returned

    with pytest.raises(rb.UsageError, match=said):
        open_model(wrong)(pictures(2))


async def coroutine(images: list[Image]) -> list[Any]:
    return []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine.py", r"is not a model.*did you mean mine.py:FUNCTION\?"),
        ("model.tflite", "expected a function .* file.py:FUNCTION or .*onnx, ultralytics"),
        ("nowhere/mine.py:predict", "there is no file nowhere/mine.py"),
        (3, "a model is a function .* got int"),
        (Colours, "Colours is a class; pass an instance"),
        (coroutine, "coroutine is a coroutine function"),
    ],
)
def test_what_is_no_model_is_refused_with_what_would_be_one(spec: Any, said: str) -> None:
    with pytest.raises(rb.UsageError, match=said):
        open_model(spec)


def test_options_are_refused_where_nobody_would_read_them() -> None:
    with pytest.raises(rb.UsageError, match="mean_colours takes no options, got conf, imgsz"):
        open_model(mean_colours, imgsz=64, conf=0.1)
    with pytest.raises(rb.UsageError, match="mean_colours chooses its own device"):
        open_model(mean_colours, device="cpu")
    with pytest.raises(rb.UsageError, match="unknown device 'abacus'"):
        open_model(Colours(), device="abacus")


def test_a_model_of_ones_own_stays_itself() -> None:
    model = FunctionModel(mean_colours)
    assert open_model(model) is model


def test_plain_makes_json_of_arrays_and_tensors_and_refuses_the_rest() -> None:
    value = {
        "array": np.arange(2),
        "number": np.float32(0.5),
        "tensor": torch.ones(1, 2),
        "set": {1},
    }
    text = json.dumps(value, default=json_default)
    assert json.loads(text) == {"array": [0, 1], "number": 0.5, "tensor": [[1, 1]], "set": [1]}
    with pytest.raises(TypeError, match="a result contains a object"):
        json.dumps(object(), default=json_default)
