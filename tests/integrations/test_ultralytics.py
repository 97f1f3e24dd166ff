"""Ultralytics: what is run, and that nothing of the user's changes."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from yolo_models import tiny

import rightbatch as rb

pytestmark = pytest.mark.yolo
pytest.importorskip("ultralytics")

IMAGES, VALIDATION, SIZE = 6, 5, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rightbatch.examples import render_parts

    folder = tmp_path_factory.mktemp("parts") / "parts"
    return render_parts(folder, images=IMAGES, validation=VALIDATION, size=SIZE)


@pytest.fixture(scope="module")
def trainer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A live trainer with a live model, as `YOLO("yolo26n.pt").train` makes it."""
    from ultralytics import YOLO

    model = YOLO("yolo26n.yaml")
    overrides = {
        "model": "yolo26n.yaml",
        "data": str(data),
        "imgsz": SIZE,
        "batch": -1,
        "project": str(tmp_path_factory.mktemp("runs")),
        "device": "cpu",
        "plots": False,
    }
    made = model.task_map["detect"]["trainer"](overrides=overrides)
    made.model = made.get_model(cfg=model.model.yaml, weights=model.model, verbose=False)
    return made


def everything(trainer: Any) -> dict[str, Any]:
    """What must be the same afterwards, copied."""
    import numpy as np

    return {
        "weights and buffers": copy.deepcopy(trainer.model.state_dict()),
        "arguments": {k: v for k, v in vars(trainer.args).items() if k != "batch"},
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True)[1].tolist(),
        "torch": torch.get_rng_state(),
        "flags": (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        ),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "training": trainer.model.training,
        "gradients": [p.grad is None for p in trainer.model.parameters()],
    }


def is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[k], other[k]) for k in one)
    return bool(one == other)


def files_under(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_measuring_changes_nothing_but_the_batch_of_a_live_trainer(
    trainer: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rightbatch.integrations.ultralytics import _install as integration

    monkeypatch.chdir(tmp_path)
    before, files = everything(trainer), files_under(data.parent)
    runs = files_under(Path(trainer.args.project))

    result = integration._measure(trainer)

    after = everything(trainer)
    changed = [key for key in before if not is_equal(before[key], after[key])]
    assert changed == []
    assert trainer.args.batch == trainer.batch_size == result.batch_size == IMAGES
    assert result.evaluation_batch_size == VALIDATION, "twice the batch, at most the data set"
    assert files_under(data.parent) == files, "no labels.cache beside the labels"
    assert files_under(Path(trainer.args.project)) == runs
    assert list(tmp_path.iterdir()) == [], "no run folder, no tracker where the user stands"


class TestShare:
    """What `batch=` asks for, without running it."""

    @pytest.fixture
    def asked(self, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        import rightbatch._fit.fit

        asked: dict[str, Any] = {}

        class Answer:
            batch_size, examples = 12, 25

        def fit(factory: Any, **options: Any) -> Any:
            asked.update(options)
            return Answer()

        monkeypatch.setattr(rightbatch._fit.fit, "fit", fit)
        before = (trainer.args.batch, trainer.batch_size, trainer.world_size)
        yield asked
        trainer.args.batch, trainer.batch_size, trainer.world_size = before

    @pytest.mark.parametrize(("batch", "margin"), [(-1, 0.05), (0.7, 0.3)])
    def test_a_share_of_the_memory_is_what_the_margin_leaves(
        self, trainer: Any, asked: dict[str, Any], batch: float, margin: float
    ) -> None:
        from rightbatch.integrations.ultralytics import _install as integration

        trainer.args.batch = batch
        integration._measure(trainer)
        assert asked["margin"] == pytest.approx(margin)
        assert trainer.args.batch == trainer.batch_size == 12

    def test_no_single_image_remains_at_a_size_that_batchnorm_cannot_train(
        self, trainer: Any, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """25 images in batches of 12 leave one, which Ultralytics refuses below 64 pixels."""
        from rightbatch.integrations.ultralytics import _install as integration

        monkeypatch.setattr(trainer.args, "imgsz", 32)
        trainer.args.batch = -1
        integration._measure(trainer)
        assert trainer.args.batch == 11

    def test_with_several_gpus_each_gets_what_fits_one(
        self, trainer: Any, asked: dict[str, Any]
    ) -> None:
        from rightbatch.integrations.ultralytics import _install as integration

        trainer.args.batch, trainer.world_size = -1, 4
        integration._measure(trainer)
        assert trainer.args.batch == trainer.batch_size == 48


def test_install_measures_once_only_where_a_batch_is_missing_and_can_be_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    from ultralytics.engine.trainer import BaseTrainer

    from rightbatch.integrations.ultralytics import _elastic as elastic
    from rightbatch.integrations.ultralytics import _install as integration

    trained, measured, watched = [], [], []
    monkeypatch.setattr(BaseTrainer, "train", lambda trainer: trained.append(trainer.args.batch))
    monkeypatch.setattr(integration, "_measure", lambda trainer: measured.append(trainer))
    monkeypatch.setattr(elastic, "ElasticYolo", lambda trainer: watched.append(trainer))
    original = BaseTrainer.train
    integration.install()
    integration.install()
    for batch in (16, -1, 0.5):
        BaseTrainer.train(SimpleNamespace(args=SimpleNamespace(batch=batch), world_size=1))
    integration.uninstall()
    assert BaseTrainer.train is original
    assert trained == [16, -1, 0.5]
    assert [trainer.args.batch for trainer in measured] == [-1, 0.5]
    assert [trainer.args.batch for trainer in watched] == [16, -1, 0.5]


def test_every_image_gets_the_most_objects_there_are() -> None:
    from rightbatch.integrations.ultralytics._batches import with_objects

    batch = {
        "img": torch.zeros(3, 3, 8, 8),
        "cls": torch.tensor([[0.0], [1.0], [2.0]]),
        "bboxes": torch.arange(12.0).reshape(3, 4),
        "batch_idx": torch.tensor([0.0, 0.0, 2.0]),
        "im_file": ("a", "b", "c"),
    }
    full = with_objects(batch, images=3, objects=4)
    assert full["batch_idx"].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    assert full["cls"].flatten().tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 2, 2, 2, 2]
    assert torch.equal(full["bboxes"][8], batch["bboxes"][2])
    assert full["img"] is batch["img"]
    assert full["im_file"] is batch["im_file"]


@pytest.fixture
def yolo_session(data: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a session that trains, or one of inference, of a small model unless told otherwise."""
    from rightbatch.integrations.ultralytics import from_spec

    opened = []

    def make(inference: bool, spec: str | None = None) -> Any:
        training = from_spec(spec or str(tiny(tmp_path)), data=str(data), imgsz=SIZE)
        assert training is not None
        opened.append(training.session("cpu", seed=0, inference=inference))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


@pytest.mark.filterwarnings("ignore")  # of trackers that Ultralytics registers
def test_a_session_and_a_training_leave_every_file_of_the_data_set_as_it_is(
    tmp_path: Path,
) -> None:
    """A telephone's JPEG has bytes after its end, which Ultralytics takes for damage."""
    from rightbatch.examples import render_parts
    from rightbatch.integrations.ultralytics import from_spec

    data = render_parts(tmp_path / "parts", images=6, validation=4, size=SIZE)
    for image in (data.parent / "images").rglob("*.jpg"):
        image.write_bytes(image.read_bytes() + b"preview")

    def contents() -> dict[str, bytes]:
        files = (path for path in data.parent.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = contents()
    training = from_spec(str(tiny(tmp_path)), data=str(data), imgsz=SIZE, workers=0)
    assert training is not None
    for inference in (False, True):
        training.session("cpu", seed=0, inference=inference).close()
    assert contents() == before
    plan = {"batch": 2, "epochs": 1, "device": "cpu", "progress": False}
    rb.train(training, out=tmp_path / "out", **plan)
    assert contents() == before


def test_inference_holds_more_images_than_the_data_set_has(
    yolo_session: Callable[..., Any],
) -> None:
    assert yolo_session(True).evaluate(VALIDATION + 3) == VALIDATION + 3


@pytest.mark.slow
def test_train_from_the_shell_chooses_trains_and_reports(data: Path, tmp_path: Path) -> None:
    command = f"""train yolo26n.yaml --data {data} --imgsz {SIZE} --epochs 1 --batch auto
        --out out --max-batch 4 --device cpu --budget 6s --json"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment["YOLO_CONFIG_DIR"] = str(tmp_path / "configuration")
    environment["MLFLOW_TRACKING_URI"] = (tmp_path / "tracked").as_uri()
    environment["MLFLOW_ALLOW_FILE_STORE"] = "true"
    done = subprocess.run(
        [sys.executable, "-m", "rightbatch", *command.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    size = report["batch_size"]
    assert size in (1, 2, 4)
    assert report["steps"] == -(-IMAGES // size)
    plan = report["plan"]
    assert plan["batch_size"] == size and plan["largest"]["batch_size"] == 4
    assert plan["noise_scale"]["notes"], "YOLO's loss does not split exactly"
    assert plan["observations"] and plan["samples"]
    assert report["out_of_memory_events"] == 0
    assert "metrics/mAP50(B)" in report["metrics"]
    assert (tmp_path / "out" / "weights" / "best.pt").is_file()


def test_the_peak_of_a_larger_yolo_batch_is_on_the_line_through_small_ones(
    yolo_session: Callable[..., Any],
) -> None:
    from rightbatch._predict.follow_framework import FrameworkFollower
    from rightbatch._predict.trace import Family
    from rightbatch._predict.variant import Variant
    from rightbatch._training.protocol import Ability, Training

    class Opening(Training):
        integration, abilities = "Ultralytics", frozenset({Ability.FOLLOW})

        def session(self, device: str, *, seed: int, inference: bool) -> Any:
            return yolo_session(inference, "yolo26n.yaml")

    traces = FrameworkFollower(Opening()).traces([2, 7, 14], Variant(capability=8.9))
    low, high, larger = (trace.condensed() for trace in traces)
    assert low.is_like(high)
    predicted = Family(2, 7, low, high).at(14)
    assert predicted.peak_bytes == pytest.approx(larger.peak_bytes, rel=0.01)
    model = yolo_session(False, "yolo26n.yaml")._trainer.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert predicted.breakdown()["parameters"] == weights


def test_predict_from_the_shell_follows_the_trainers_own_step(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rightbatch", "predict", "yolo26n.yaml", "--batch", "4"]
    command += ["--data", str(data), "--imgsz", str(SIZE), "--gpu", "RTX 4060", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["how"] == "real"
    assert found["largest_batch_size"] == IMAGES
    assert any("real tensors" in note for note in found["notes"])
    assert list(tmp_path.iterdir()) == []


def test_a_yolo_model_needs_its_data() -> None:
    with pytest.raises(rb.UsageError, match="--data"):
        rb.fit("yolo26n.yaml")
    with pytest.raises(rb.UsageError, match="no data set file"):
        rb.fit("yolo26n.yaml", data="nowhere/data.yaml")
