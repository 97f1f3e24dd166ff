"""ONNX files: generic ones against numpy, Ultralytics' against Ultralytics' own predictions."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from yolo_models import (
    assert_same_detections,
    export,
    is_same_detections,
    lively,
    pictures,
    ultralytics_own,
)

import rightbatch as rb
from rightbatch._serve.models.onnx_providers import PROVIDERS
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Image, Model
from rightbatch.integrations import _pixels
from rightbatch.integrations._pixels import Letterbox, resize_by_numpy
from rightbatch.integrations._yolo_outputs import suppress
from rightbatch.testing import ModelContract

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from rightbatch.integrations.onnx import OnnxModel, devices  # noqa: E402

Side = int | str
DETECTED = {"task": "detect", "names": "{0: 'a'}", "imgsz": "[64, 64]", "stride": "32"}


def generic(
    path: Path,
    shape: tuple[Side, ...],
    kind: str = "float32",
    metadata: dict[str, str] | None = None,
) -> str:
    """A file whose outputs are the mean colour, and the largest value of everything."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
            node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
            node("ReduceMax", ["floats", "all"], ["largest"], keepdims=0),
        ],
        "colours",
        [value("images", element, shape)],
        [
            value("mean", onnx.TensorProto.FLOAT, [shape[0], 3]),
            value("largest", onnx.TensorProto.FLOAT, [shape[0]]),
        ],
        [
            onnx.numpy_helper.from_array(np.array(axes), "axes"),
            onnx.numpy_helper.from_array(np.array([1, 2, 3]), "all"),
        ],
    )
    model = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return str(path)


SHAPES: list[tuple[Side, ...]] = [
    ("N", 3, "H", "W"),
    ("N", 3, 32, 48),
    (2, 3, 32, 48),
    (4, 3, "H", "W"),
    ("N", 32, 48, 3),
    (3, "H", "W", 3),
]


class TestGeneric(ModelContract):
    @pytest.fixture(params=SHAPES, ids=str)
    def model(self, request: pytest.FixtureRequest, tmp_path: Path) -> Model:
        return open_model(generic(tmp_path / "colours.onnx", request.param))


class TestOnEveryDevice(ModelContract):
    @pytest.fixture(params=devices())
    def model(self, request: pytest.FixtureRequest, tmp_path: Path) -> Model:
        path = generic(tmp_path / "colours.onnx", ("N", 3, "H", "W"))
        return open_model(path, device=request.param)


@pytest.mark.parametrize("device", sorted(PROVIDERS.keys() - set(devices())))
def test_a_device_is_tried_where_it_is(device: str) -> None:
    pytest.skip(f"the ONNX Runtime here has no {PROVIDERS[device]}")


@pytest.mark.parametrize("kind", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_generic_model_gets_rgb_in_its_layout_type_and_shape(
    tmp_path: Path, shape: tuple[Side, ...], kind: str
) -> None:
    model = open_model(generic(tmp_path / "colours.onnx", shape, kind))
    assert model.sizes == ((shape[0],) if isinstance(shape[0], int) else None)
    images = pictures((40, 50), (40, 50), (20, 90))
    scale, within = (1, 1e-3) if kind == "uint8" else (255, 1e-3 if kind == "float16" else 1e-6)
    for image, result in zip(images, model(images), strict=True):
        seen = _pixels.resize(image, (32, 48)) if 32 in shape else image
        mean, largest = result
        assert np.allclose(mean, seen.mean((0, 1)) / scale, atol=within)
        assert np.allclose(largest, seen.max() / scale, atol=within)


def test_mean_and_std_normalize_each_channel(tmp_path: Path) -> None:
    path = generic(tmp_path / "colours.onnx", (2, 3, "H", "W"))
    images = pictures((20, 30), (20, 30), (20, 30))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for image, (colour, _) in zip(
        images, open_model(path, mean=mean, std=std)(images), strict=True
    ):
        assert np.allclose(colour, (image.mean((0, 1)) / 255 - mean) / std, atol=1e-4)


@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), (1, 3, "H", "W"), (3, 3, "H", "W")], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_as_many_as_were_asked_for_and_change_no_result(
    tmp_path: Path, threads: int, shape: tuple[Side, ...]
) -> None:
    model = OnnxModel(Path(generic(tmp_path / "colours.onnx", shape)), threads=threads)
    assert model._session.get_session_options().intra_op_num_threads == threads
    for count in range(1, 8):
        images = pictures(*[(20, 30)] * count)
        results = model(images)
        assert len(results) == count
        for image, (mean, _) in zip(images, results, strict=True):
            assert np.allclose(mean, image.mean((0, 1)) / 255, atol=1e-6)
    threads_of_it = list(model._pool._threads)
    model.close()  # waits for none of them
    for thread in threads_of_it:
        thread.join(60)
        assert not thread.is_alive()


def test_the_threads_of_omp_are_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    model = OnnxModel(Path(generic(tmp_path / "colours.onnx", ("N", 3, "H", "W"))))
    assert model._session.get_session_options().intra_op_num_threads == 3


class TestRefused:
    def refuse(self, spec: str, said: str, **options: Any) -> None:
        with pytest.raises(rb.UsageError, match=said):
            open_model(spec, **options)

    def test_a_file_that_is_not_there_or_no_model(self, tmp_path: Path) -> None:
        self.refuse(str(tmp_path / "no.onnx"), "file .*no.onnx not found in")
        (tmp_path / "text.onnx").write_text("text")
        self.refuse(str(tmp_path / "text.onnx"), r"ONNX Runtime \d.* cannot load text.onnx: ")

    @pytest.mark.parametrize("shape", [("N", 10), ("N", 4, 8, 8), ("N", 8, 8, 4)])
    def test_an_input_that_no_picture_fits(self, tmp_path: Path, shape: tuple[Side, ...]) -> None:
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "same",
            [value("x", 1, shape)],
            [value("y", 1, shape)],
        )
        made = onnx.helper.make_model(
            graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]
        )
        onnx.save(made, tmp_path / "same.onnx")
        self.refuse(str(tmp_path / "same.onnx"), "expected N×3×H×W, N×1×H×W .*file.py:FUNCTION")

    def test_options_that_it_has_not(self, tmp_path: Path) -> None:
        path = generic(tmp_path / "colours.onnx", ("N", 3, "H", "W"))
        self.refuse(path, "has no option conf; options: threads, mean, std", conf=0.5)
        self.refuse(path, "threads must be at least 1, got 0", threads=0)
        path = generic(tmp_path / "bytes.onnx", ("N", 3, "H", "W"), "uint8")
        self.refuse(path, "has a uint8 input, which is not normalized", mean=[0.5])

    def test_a_device_that_is_not_here(self, tmp_path: Path) -> None:
        path = generic(tmp_path / "colours.onnx", ("N", 3, "H", "W"))
        self.refuse(path, r"no device 'abacus'; it has .*cpu; other builds", device="abacus")

    @pytest.mark.parametrize("task", ["segment", "pose", "obb"])
    def test_tasks_of_ultralytics_that_are_not_decoded(self, tmp_path: Path, task: str) -> None:
        path = generic(
            tmp_path / "yolo.onnx", ("N", 3, "H", "W"), metadata=DETECTED | {"task": task}
        )
        self.refuse(path, f"a model for '{task}'.* use the .pt file with ultralytics")

    def test_outputs_of_a_detector_that_are_not_known(self, tmp_path: Path) -> None:
        path = generic(tmp_path / "yolo.onnx", ("N", 3, "H", "W"), metadata=DETECTED)
        with pytest.raises(rb.UsageError, match=r"unsupported output \(1, 3\) .* use the .pt"):
            open_model(path)(pictures((64, 64)))

    def test_an_imgsz_that_it_cannot_have(self, tmp_path: Path) -> None:
        path = generic(tmp_path / "any.onnx", ("N", 3, "H", "W"), metadata=DETECTED)
        self.refuse(
            path,
            "does not support imgsz=65: it is exported for dynamic shapes, multiples of 32",
            imgsz=65,
        )
        path = generic(tmp_path / "fixed.onnx", ("N", 3, 64, 64), metadata=DETECTED)
        self.refuse(path, "does not support imgsz=96: it is exported for 64×64", imgsz=96)

    def test_a_shape_of_its_own_for_each_picture_where_there_is_one_shape(
        self, tmp_path: Path
    ) -> None:
        path = generic(tmp_path / "fixed.onnx", ("N", 3, 64, 64), metadata=DETECTED)
        self.refuse(path, "does not support rect=True: it is exported for 64×64", rect=True)
        assert open_model(path, rect=False)
        path = generic(tmp_path / "wide.onnx", ("N", 3, 64, "W"), metadata=DETECTED)
        self.refuse(path, "does not support rect=True: it is exported for 64×any", rect=True)

    @pytest.mark.parametrize("final", [{"end2end": "True"}, {"args": "{'nms': True}"}])
    def test_an_overlap_where_boxes_come_out_final(
        self, tmp_path: Path, final: dict[str, str]
    ) -> None:
        path = generic(tmp_path / "yolo.onnx", ("N", 3, "H", "W"), metadata=DETECTED | final)
        self.refuse(path, "has no option iou: the model includes", iou=0.5)
        assert open_model(path, conf=0.5, max_det=10, iou=None)

    def test_rt_detr_when_it_is_opened(self, tmp_path: Path) -> None:
        path = generic(
            tmp_path / "rtdetr.onnx",
            ("N", 3, "H", "W"),
            metadata=DETECTED | {"head": "RTDETRDecoder"},
        )
        self.refuse(path, "the head RTDETRDecoder.* use the .pt file with ultralytics")

    def test_nothing_where_an_output_has_no_row_for_each_image(self, tmp_path: Path) -> None:
        path = generic(tmp_path / "colours.onnx", ("N", 3, "H", "W"))
        made = onnx.load(path)
        made.graph.initializer[1].CopyFrom(
            onnx.numpy_helper.from_array(np.array([0, 1, 2, 3]), "all")
        )
        made.graph.output[1].type.tensor_type.shape.Clear()
        onnx.save(made, path)
        model = open_model(path, threads=1)
        assert model.sizes == (1,)
        images = pictures((8, 8), (8, 8))
        for image, (_, largest) in zip(images, model(images), strict=True):
            assert largest.shape == ()
            assert np.allclose(largest, image.max() / 255)


# Pixels


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 70), st.integers(1, 70))
def test_resizing_by_numpy_is_that_of_opencv_within_rounding(
    original: tuple[int, int], height: int, width: int
) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (*original, 3), np.uint8)
    reference = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize_by_numpy(image, (height, width)) - reference.astype(int)).max() <= 1


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.tuples(st.sampled_from([64, 96, 320]), st.sampled_from([64, 128, 320])),
    st.booleans(),
)
def test_a_box_goes_there_and_back(
    original: tuple[int, int], target: tuple[int, int], rect: bool
) -> None:
    box = Letterbox.of(original, target, 32 if rect else None)
    assert all(side % 32 == 0 for side in box.canvas)
    assert all(side <= most for side, most in zip(box.canvas, target, strict=True))
    inner = [box.left, box.top, box.left + box.inner[1], box.top + box.inner[0]]
    whole = [0, 0, original[1], original[0]]
    assert np.allclose(box.to_original(np.array([inner, [-9, -9, 999, 999]])), [whole, whole])


@pytest.mark.yolo
@pytest.mark.parametrize("rect", [True, False])
@pytest.mark.parametrize("shape", [(180, 320), (97, 33), (31, 400), (320, 320), (333, 511)])
def test_letterboxing_is_that_of_ultralytics(shape: tuple[int, int], rect: bool) -> None:
    augment = pytest.importorskip("ultralytics.data.augment")
    [image] = pictures(shape)
    reference = augment.LetterBox((320, 320), auto=rect, stride=32)(image=image)
    box = Letterbox.of(shape, (320, 320), 32 if rect else None)
    canvas = np.empty((*box.canvas, 3), np.uint8)
    box.write(image, canvas)
    assert np.array_equal(canvas, reference)


# Suppression


def suppress_one_by_one(
    output: NDArray[np.float32], conf: float, iou: float, most: int
) -> list[list[int]]:
    """The places that the textbook's loop keeps, for each image."""

    def overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        low = np.maximum(one[:2] - one[2:4] / 2, other[:2] - other[2:4] / 2)
        high = np.minimum(one[:2] + one[2:4] / 2, other[:2] + other[2:4] / 2)
        shared = float(np.prod(np.maximum(high - low, 0)))
        return shared / float(np.prod(one[2:4]) + np.prod(other[2:4]) - shared)

    kept_of_all = []
    for boxes in output.transpose(0, 2, 1):
        sure, kinds = boxes[:, 4:].max(1), boxes[:, 4:].argmax(1)
        kept: list[int] = []
        for place in sorted(np.flatnonzero(sure > conf), key=lambda k: -sure[k]):
            if all(
                kinds[place] != kinds[one] or overlap(boxes[place], boxes[one]) <= iou
                for one in kept
            ):
                kept.append(int(place))
        kept_of_all.append(kept[:most])
    return kept_of_all


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.sampled_from([0.2, 0.7]),
    st.sampled_from([3, 300]),
)
def test_suppression_keeps_what_the_textbooks_loop_keeps(
    seed: int, images: int, places: int, kinds: int, conf: float, iou: float, most: int
) -> None:
    random = np.random.default_rng(seed)
    boxes = random.uniform(5, 30, (images, 4, places))
    output = np.concatenate([boxes, random.random((images, kinds, places))], 1, dtype=np.float32)
    expected = suppress_one_by_one(output, conf, iou, most)
    for found, kept, raw in zip(suppress(output, conf, iou, most), expected, output, strict=True):
        assert found.shape == (len(kept), 6)
        assert np.array_equal(found[:, 4], raw[4:, kept].max(0))
        assert np.array_equal(found[:, 5], raw[4:, kept].argmax(0))
        assert np.allclose(found[:, 2:4] - found[:, :2], raw[2:4, kept].T, atol=1e-4)


# Ultralytics' files

FILES: dict[str, dict[str, Any]] = {
    "without duplicates": {"nms": False, "dynamic": True},
    "to be suppressed": {"dynamic": True},
    "suppressing": {"nms": True, "dynamic": True},
    "fixed": {"nms": False, "batch": 2},
}
IMAGES = pictures((90, 160), (120, 160), (160, 150), (90, 160), (61, 90))
CONF = 0.3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("ultralytics")
    folder = tmp_path_factory.mktemp("onnx")
    return {
        name: export(lively("yolo26n.yaml"), folder / f"{k}.onnx", imgsz=160, **arguments)
        for k, (name, arguments) in enumerate(FILES.items())
    }


@pytest.mark.yolo
@pytest.mark.parametrize("name", FILES)
def test_boxes_are_those_of_ultralytics_whatever_the_batch(
    files: dict[str, Path], name: str
) -> None:
    model = open_model(str(files[name]), conf=CONF)
    assert model.sizes == {"fixed": (2,), "suppressing": (1,)}.get(name)
    results = model(IMAGES)
    assert sum(len(result["detections"]) for result in results) > 20
    for image, result in zip(IMAGES, results, strict=True):
        batch = 2 if name == "fixed" else 1
        reference = ultralytics_own(files[name], image, batch, conf=CONF, imgsz=160)
        assert_same_detections(result, reference)


@pytest.mark.yolo
@pytest.mark.parametrize("options", [{"imgsz": 96}, {"max_det": 3}, {"iou": 0.1}, {"rect": False}])
def test_options_mean_what_they_mean_in_ultralytics(
    files: dict[str, Path], options: dict[str, Any]
) -> None:
    path = files["to be suppressed"]
    arguments = {"imgsz": 160, "conf": CONF} | options
    for image, result in zip(IMAGES, open_model(str(path), **arguments)(IMAGES), strict=True):
        assert_same_detections(result, ultralytics_own(path, image, **arguments))


@pytest.mark.yolo
def test_boxes_without_opencv_are_those_with_it_within_a_pixel(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(files["without duplicates"]), conf=CONF)
    expected = model(IMAGES[:1])[0]["detections"]
    monkeypatch.setattr(_pixels, "_opencv", lambda: None)
    found = model(IMAGES[:1])[0]["detections"]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.subtract(one["box"], other["box"])).max() < 1


@pytest.mark.yolo
def test_classes_are_those_of_ultralytics(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    path = export(lively("yolo26n-cls.yaml"), tmp_path / "cls.onnx", imgsz=64, dynamic=True)
    results = open_model(str(path))(IMAGES)
    tops = set()
    for image, result in zip(IMAGES, results, strict=True):
        reference = ultralytics_own(path, image, imgsz=64).probs
        assert [one["class"] for one in result["classes"]] == reference.top5
        confidences = [one["confidence"] for one in result["classes"]]
        assert np.allclose(confidences, reference.top5conf, atol=1e-3)
        tops.add(reference.top1)
    assert len(tops) > 1


@pytest.mark.yolo
class TestYolo(ModelContract):
    shapes = ((90, 160), (160, 100), (120, 160))

    @pytest.fixture(params=FILES)
    def model(self, request: pytest.FixtureRequest, files: dict[str, Path]) -> Model:
        return open_model(str(files[request.param]), conf=CONF)

    def is_same(self, one: Any, other: Any) -> bool:
        return is_same_detections(one, other, CONF)

    def images(self, count: int) -> list[Image]:
        return pictures(*itertools.islice(itertools.cycle(self.shapes), count))


@pytest.mark.yolo
def test_a_machine_without_ultralytics_and_torch_serves_an_exported_file(
    files: dict[str, Path],
) -> None:
    program = """
        import sys
        for absent in ("torch", "ultralytics", "cv2", "onnx"):
            sys.modules[absent] = None
        import numpy as np
        from rightbatch._serve.models.open import open_model
        model = open_model(sys.argv[1], conf=0.01)
        [result] = model([np.arange(90 * 160 * 3).reshape(90, 160, 3).astype(np.uint8)])
        print(sorted(result["detections"][0]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), files["to be suppressed"]],
        capture_output=True,
        text=True,
        timeout=500,  # of what hangs
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['box', 'class', 'confidence', 'name']"
