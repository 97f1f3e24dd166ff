"""Every integration's training under the contract that all verbs rely on."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_elastic_frameworks import BATCH, TestLightning, TestTransformers, data
from torch.utils.data import DataLoader

from rightbatch import Training
from rightbatch._training.resolve import resolve
from rightbatch.testing import TrainingContract

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LightningTask, TransformersTask = TestLightning, TestTransformers
del TestLightning, TestTransformers  # they are collected in their own file


class TestLightningTraining(TrainingContract):
    @pytest.fixture
    def training(self) -> Training:
        pytest.importorskip("lightning")
        from rightbatch.integrations.lightning import workload

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        def factory() -> Any:
            loaders = DataLoader(data(), BATCH), DataLoader(data(), 5)
            module = LightningTask().module()  # without a `forward` of its own
            return workload(module, *loaders, predict=lambda module, x: module.network(x[0]))

        return resolve(factory)


class TestTransformersTraining(TrainingContract):
    @pytest.fixture
    def training(self) -> Training:
        pytest.importorskip("transformers")
        from rightbatch.integrations.transformers import workload

        def factory() -> Any:
            return workload(TransformersTask().trainer(Path(tempfile.mkdtemp()), 4))

        return resolve(factory)


@pytest.mark.yolo
class TestUltralyticsTraining(TrainingContract):
    sizes = (2, 3, 5)
    batch_size = 4

    @pytest.fixture
    def description(self, request: pytest.FixtureRequest) -> object:
        """Not loaded: `load` changes Ultralytics' settings, as it may in a worker only."""
        pytest.importorskip("ultralytics")
        from yolo_models import tiny

        from rightbatch.examples import render_parts
        from rightbatch.integrations.ultralytics import from_spec

        kind = type(self)
        if "_spec" not in vars(kind):
            folder = request.getfixturevalue("tmp_path_factory").mktemp("parts") / "parts"
            images = render_parts(folder, images=12, validation=6, size=64)
            kind._spec = str(tiny(folder.parent)), str(images)
        model, images = kind._spec
        return from_spec(model, data=images, imgsz=64, workers=0)

    _spec: tuple[str, str]

    @pytest.fixture
    def training(self, description: object) -> Training:
        torch.manual_seed(0)
        return resolve(description)
