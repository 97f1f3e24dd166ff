"""ONNX files as exporters write them: served with right numbers, or refused as documented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import documented
from numpy.typing import NDArray
from PIL import Image

from rightbatch._errors import UsageError
from rightbatch._serve.models.open import open_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
FLOAT, HALF, BYTES = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8
DOUBLE, INTEGERS = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
HIGH, WIDE = 32, 48
Shape = tuple[int | str, ...]
Right = Callable[[NDArray[Any]], list[NDArray[Any]]]


def constant(name: str, *numbers: float, kind: type = np.int64) -> Any:
    return onnx.numpy_helper.from_array(np.array(numbers, kind), name)


def file(folder: Path, nodes: list[Any], inputs: Any, outputs: Any, *constants: Any) -> str:
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), folder / "m.onnx")
    return str(folder / "m.onnx")


def mean(shape: Shape, kind: int = FLOAT, axes: tuple[int, int] = (2, 3)) -> Callable[[Path], str]:
    """A model whose outputs are the mean of each channel and the largest value."""
    nodes = [
        node("Cast", ["x"], ["f"], to=FLOAT),
        node("ReduceMean", ["f", "a"], ["mean"], keepdims=0),
        node("ReduceMax", ["f", "all"], ["most"], keepdims=0),
    ]
    outputs = [value("mean", FLOAT, [shape[0], None]), value("most", FLOAT, [shape[0]])]
    constants = constant("a", *axes), constant("all", 1, 2, 3)
    return lambda folder: file(folder, nodes, [value("x", kind, shape)], outputs, *constants)


def reshape(*frozen: int) -> Callable[[Path], str]:
    """A model with a dynamic batch whose Reshape has another one."""
    nodes = [
        node("AveragePool", ["x"], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Reshape", ["p", "s"], ["y"]),
    ]
    inputs, outputs = [value("x", FLOAT, ["N", 3, HIGH, WIDE])], [value("y", FLOAT, ["N", None])]
    return lambda folder: file(folder, nodes, inputs, outputs, constant("s", *frozen))


def centred(folder: Path, batch: int | str = "N") -> str:
    """Each image minus the mean of its batch, as BatchNorm in training mode has it."""
    nodes = [
        node("ReduceMean", ["x", "n"], ["m"], keepdims=1),
        node("Sub", ["x", "m"], ["z"]),
        node("ReduceMean", ["z", "a"], ["y"], keepdims=0),
    ]
    inputs, outputs = [value("x", FLOAT, [batch, 3, HIGH, WIDE])], [value("y", FLOAT, [batch, 3])]
    return file(folder, nodes, inputs, outputs, constant("n", 0), constant("a", 2, 3))


def bright(batch: int | str) -> Callable[[Path], str]:
    """The places of all bright values, as the rows of detections."""
    nodes = [
        node("Greater", ["x", "t"], ["g"]),
        node("NonZero", ["g"], ["nz"]),
        node("Transpose", ["nz"], ["y"], perm=[1, 0]),
    ]
    inputs, outputs = [value("x", FLOAT, [batch, 3, 4, 4])], [value("y", INTEGERS, ["K", 4])]
    limit = onnx.numpy_helper.from_array(np.float32(0.7), "t")
    return lambda folder: file(folder, nodes, inputs, outputs, limit)


def two_inputs(folder: Path) -> str:
    nodes = [node("Mul", ["x", "size"], ["y"])]
    inputs = [value("x", FLOAT, ["N", 3, HIGH, WIDE]), value("size", FLOAT, ["N", 1, 1, 1])]
    return file(folder, nodes, inputs, [value("y", FLOAT, ["N", 3, HIGH, WIDE])])


def channels(image: NDArray[Any]) -> list[NDArray[Any]]:
    return [image.mean((0, 1)) / 255, np.array(image.max() / 255)]


def gray(image: NDArray[Any]) -> list[NDArray[Any]]:
    return channels(np.asarray(Image.fromarray(image).convert("L"))[..., None])


def raw(image: NDArray[Any]) -> list[NDArray[Any]]:
    return [image.mean((0, 1)), np.array(image.max())]


def tiles(image: NDArray[Any]) -> list[NDArray[Any]]:
    pooled = image.reshape(HIGH // 16, 16, WIDE // 16, 16, 3).mean((1, 3)) / 255
    return [pooled.transpose(2, 0, 1).ravel()]


def places(image: NDArray[Any]) -> list[NDArray[Any]]:
    small = image.reshape(4, HIGH // 4, 4, WIDE // 4, 3)[:, 0, :, 0]
    return [np.argwhere((small.transpose(2, 0, 1) / 255 > 0.7)[None])]


KINDS: dict[str, tuple[Callable[[Path], str], Right | None, tuple[int, ...] | None]] = {
    "N×3×H×W, dynamic batch": (mean(("N", 3, HIGH, WIDE)), channels, None),
    "N×H×W×3": (mean(("N", HIGH, WIDE, 3), axes=(1, 2)), channels, None),
    "everything but the channels dynamic": (mean(("N", 3, "H", "W")), channels, None),
    "fixed batch of 1": (mean((1, 3, HIGH, WIDE)), channels, (1,)),
    "fixed batch of 4": (mean((4, 3, HIGH, WIDE)), channels, (4,)),
    "float16 input": (mean(("N", 3, HIGH, WIDE), HALF), channels, None),
    "uint8 input": (mean(("N", HIGH, WIDE, 3), BYTES, (1, 2)), raw, None),
    "1 channel, N×1×H×W": (mean(("N", 1, HIGH, WIDE)), gray, None),
    "1 channel, N×H×W×1": (mean(("N", HIGH, WIDE, 1), axes=(1, 2)), gray, None),
    "2, 4 or more channels": (mean(("N", 4, HIGH, WIDE)), None, None),
    "dynamic channels": (mean(("N", "C", "H", "W")), None, None),
    "float64 or integer input": (mean(("N", 3, HIGH, WIDE), DOUBLE), None, None),
    "a side of 0, or more than 50 million pixels": (mean(("N", 3, 200_000, 200_000)), None, None),
    "no batch axis": (
        lambda folder: file(
            folder,
            [node("Identity", ["x"], ["y"])],
            [value("x", FLOAT, [3, HIGH, WIDE])],
            [value("y", FLOAT, [3, HIGH, WIDE])],
        ),
        None,
        None,
    ),
    "dynamic batch, frozen at 1 inside (Reshape)": (reshape(1, 18), tiles, (1,)),
    "the same, with a free axis behind it": (reshape(1, -1), tiles, (1,)),
    "dynamic batch, frozen at 4 inside (Reshape)": (reshape(4, -1), tiles, (4,)),
    "dynamic batch, results that change with the batch": (centred, lambda i: [np.zeros(3)], (1,)),
    "fixed batch of 4, results that change with the batch": (
        lambda folder: centred(folder, 4),
        None,
        None,
    ),
    "batch of 1, a row for each detection": (bright(1), places, (1,)),
    "dynamic batch, a row for each detection": (bright("N"), places, (1,)),
    "several outputs": (mean(("N", 3, HIGH, WIDE)), channels, None),
    "several inputs": (two_inputs, None, None),
}


def images() -> list[NDArray[Any]]:
    """Blocks of colour, so that every scaled copy has the same values."""
    random = np.random.default_rng(0)
    return [
        np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((HIGH // 4, WIDE // 4, 1))).astype(
            np.uint8
        )
        for _ in range(5)
    ]


def test_the_table_has_every_kind() -> None:
    assert documented("Models").keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_served_right_or_refused_as_documented(kind: str, tmp_path: Path) -> None:
    make, right, sizes = KINDS[kind]
    outcome = documented("Models")[kind]
    if right is None:
        with pytest.raises(UsageError) as raised:
            open_model(make(tmp_path))
        assert outcome in str(raised.value)
        return
    assert outcome == "served"
    model = open_model(make(tmp_path))
    assert model.sizes == sizes
    within = 1e-3 if "16" in kind else 2 / 255 if "1 channel" in kind else 1e-4
    small = 4 if "detection" in kind else None
    sent = [image[:: HIGH // small, :: WIDE // small] if small else image for image in images()]
    together, alone = model(sent), [model([image])[0] for image in sent]
    for image, *results in zip(images(), together, alone, strict=True):
        expected = right(image)
        for result in results:
            assert len(result) == len(expected)
            for found, wanted in zip(result, expected, strict=True):
                assert found.shape == wanted.shape
                scale = 255 if right is raw else 1
                np.testing.assert_allclose(found, wanted, atol=within * scale)
    model.close()


@pytest.mark.parametrize("shape", [("N", 3, 0, WIDE), (0, 3, HIGH, WIDE), ("N", 3, 10**5, 10**5)])
def test_a_shape_that_no_image_has_is_refused(shape: Shape, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images of 1 to 50000000 pixels"):
        open_model(mean(shape)(tmp_path))


def test_texts_are_results(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMax", ["x", "all"], ["most"], keepdims=0),
        node("Greater", ["most", "half"], ["bright"]),
        node("Cast", ["bright"], ["number"], to=INTEGERS),
        node("Cast", ["number"], ["y"], to=onnx.TensorProto.STRING),
    ]
    inputs = [value("x", FLOAT, ["N", 3, HIGH, WIDE])]
    outputs = [value("y", onnx.TensorProto.STRING, ["N"])]
    constants = constant("all", 1, 2, 3), onnx.numpy_helper.from_array(np.float32(0.5), "half")
    model = open_model(file(tmp_path, nodes, inputs, outputs, *constants))
    dark = np.zeros((HIGH, WIDE, 3), np.uint8)
    assert model([dark, dark + 255, dark]) == [["0"], ["1"], ["0"]]
    model.close()
