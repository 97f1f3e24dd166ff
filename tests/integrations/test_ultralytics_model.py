"""Ultralytics' models served as they are, against Ultralytics' own predictions."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from yolo_models import (
    assert_same_detections,
    is_same_detections,
    lively,
    pictures,
    ultralytics_own,
)

import rightbatch as rb
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Image, Model
from rightbatch.testing import ModelContract

pytestmark = pytest.mark.yolo
pytest.importorskip("ultralytics")

CONF = 0.3
IMAGES = pictures((90, 160), (120, 160), (160, 150), (90, 160), (61, 90))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "yolo26n-lively.pt"
    lively("yolo26n.yaml").save(path)
    return path


class TestContract(ModelContract):
    shapes = ((90, 160), (160, 150), (120, 160))

    @pytest.fixture(autouse=True)
    def _threads(self) -> Iterator[None]:
        """With one thread oneDNN takes other kernels for other batch sizes, and untrained weights
        have boxes that are nearly as good as each other."""
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)

    @pytest.fixture
    def model(self, weights: Path) -> Model:
        return open_model(str(weights), device="cpu", imgsz=160, conf=CONF)

    def is_same(self, one: Any, other: Any) -> bool:
        return is_same_detections(one, other, CONF)

    def images(self, count: int) -> list[Image]:
        return pictures(*itertools.islice(itertools.cycle(self.shapes), count))


@pytest.mark.parametrize("options", [{}, {"rect": False}, {"imgsz": 96}, {"max_det": 3}])
def test_boxes_are_those_of_ultralytics_whatever_the_batch(
    weights: Path, options: dict[str, Any]
) -> None:
    arguments = {"imgsz": 160, "conf": CONF} | options
    results = open_model(str(weights), **arguments)(IMAGES)
    assert sum(len(result["detections"]) for result in results) > 3
    for image, result in zip(IMAGES, results, strict=True):
        assert_same_detections(result, ultralytics_own(weights, image, **arguments))


@pytest.mark.parametrize(
    ("configuration", "key", "shape"),
    [
        ("yolo26n-seg.yaml", "polygon", (2,)),
        ("yolo26n-obb.yaml", "polygon", (4, 2)),
        ("yolo26n-pose.yaml", "keypoints", (17, 3)),
    ],
)
def test_polygons_and_keypoints_come_with_their_boxes(
    configuration: str, key: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    lively(configuration).save(tmp_path / "lively.pt")
    [result] = open_model(str(tmp_path / "lively.pt"), imgsz=160, conf=0.1)(IMAGES[:1])
    reference = ultralytics_own(tmp_path / "lively.pt", IMAGES[0], imgsz=160, conf=0.1)
    assert result["detections"]
    assert json.dumps(result, allow_nan=False)
    boxes = reference.boxes if reference.obb is None else reference.obb
    theirs = {
        "yolo26n-seg.yaml": lambda: reference.masks.xy,
        "yolo26n-obb.yaml": lambda: reference.obb.xyxyxyxy,
        "yolo26n-pose.yaml": lambda: reference.keypoints.data,
    }[configuration]()
    assert len(result["detections"]) == len(boxes) == len(theirs)
    for one, expected in zip(result["detections"], theirs, strict=True):
        assert set(one) == {"box", "class", "name", "confidence", key}
        found = np.array(one[key])
        assert found.shape[-len(shape) :] == shape or not len(found)
        assert np.allclose(found, expected, atol=0.01)


def test_classes_are_the_surest_five() -> None:
    model = open_model("yolo26n-cls.yaml", imgsz=64)
    for result in model(IMAGES):
        confidences = [one["confidence"] for one in result["classes"]]
        assert len(confidences) == 5
        assert confidences == sorted(confidences, reverse=True)


def test_serving_leaves_no_folder_and_changes_no_setting_and_no_variable(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.utils import SETTINGS

    monkeypatch.chdir(tmp_path)
    settings, file = dict(SETTINGS), Path(SETTINGS.file).read_text()
    environment = dict(os.environ)
    model = open_model(str(weights), device="cpu", imgsz=160)
    model(IMAGES)
    model.close()
    assert list(tmp_path.iterdir()) == []
    assert dict(SETTINGS) == settings
    assert Path(SETTINGS.file).read_text() == file
    assert dict(os.environ) == environment


def test_a_state_dict_is_refused_and_told_how_it_is_served(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(rb.UsageError, match=r"cannot load .*weights\.pt: .* file\.py:FUNCTION"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("mine.pt", {}, "there is no file mine.pt; looked in"),
        ("yolo26n.yaml", {"confidence": 0.1}, "no option confidence; options: imgsz, rect, conf"),
        (
            "yolo26n-depth.yaml",
            {},
            "a model for 'depth', which cannot be served; supported tasks are detect",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(spec: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(rb.UsageError, match=said):
        open_model(spec, **options)
