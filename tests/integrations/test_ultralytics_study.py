"""Runs of a study through Ultralytics' trainer, against that trainer alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from yolo_models import tiny

import rightbatch as rb
from rightbatch.testing import inject_out_of_memory

pytestmark = pytest.mark.yolo
pytest.importorskip("ultralytics")

from rightbatch._device import open_device  # noqa: E402
from rightbatch._study.config import StudyConfig  # noqa: E402
from rightbatch._study.options import StudyOptions  # noqa: E402
from rightbatch._study.records import Ended, Point, RunKey, Target  # noqa: E402
from rightbatch._study.runs.plan import RunPlan  # noqa: E402
from rightbatch._study.runs.training import (  # noqa: E402
    Reporter,
    factors_of,
    train_run,
)
from rightbatch.integrations.ultralytics import UltralyticsTraining, from_spec  # noqa: E402
from rightbatch.integrations.ultralytics._arguments import (  # noqa: E402
    averaging,
    comparable_arguments,
)
from rightbatch.integrations.ultralytics._isolation import (  # noqa: E402
    data_untouched,
    no_trackers,
)

IMAGES, BATCH, SIZE = 10, 4, 64
STEPS = 3


def plan_of(
    key: RunKey = RunKey(BATCH, 0),  # noqa: B008  frozen
    target: Target | None = None,
    noise_scale: float | None = None,
    **options: Any,
) -> RunPlan:
    asked = StudyOptions(batches=(key.batch_size,), out="unused", **{"epochs": 1} | options)
    return RunPlan(key, StudyConfig("parts", asked, base_batch=64, target=target), noise_scale)


PLAN = plan_of()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rightbatch.examples import render_parts

    folder = tmp_path_factory.mktemp("parts") / "parts"
    return render_parts(folder, images=IMAGES, validation=4, size=SIZE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def factory(model: str, data: Path) -> UltralyticsTraining:
    made = from_spec(model, data=str(data), imgsz=SIZE)
    assert made is not None
    return made


def ran(
    factory: UltralyticsTraining, plan: RunPlan
) -> tuple[Ended, list[Point], list[dict[str, Any]]]:
    points: list[Point] = []
    events: list[dict[str, Any]] = []

    def hear(event: str, **said: Any) -> None:
        points.extend(Point(**point) for point in said.get("points", ()))
        events.extend([said["what"]] if event == "happened" else ())

    device = open_device("cpu")
    return train_run(factory, plan, device, device.capacity(), Reporter(hear)), points, events


@pytest.fixture(scope="module")
def watched(
    factory: UltralyticsTraining, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, list[Point], Path]:
    """Two epochs with the rate as it is, and the folder where they were trained."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended, points, _ = ran(factory, plan_of(rule="none", epochs=2))
    return ended, points, folder


@pytest.fixture(scope="module")
def alone(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Ultralytics does by itself when its batch is its nominal batch.

    It validates at the end only: its validations draw from Python's random numbers, so that it
    trains on other images after them.
    """
    from ultralytics import YOLO

    seen: dict[str, Any] = {"losses": [], "rates": [], "updates": 0}

    def after_batch(trainer: Any) -> None:
        seen["losses"].append(float(sum(trainer.loss_items.values())))
        seen["rates"].append(trainer.optimizer.param_groups[0]["lr"])
        seen["updates"] = trainer.ema.updates
        seen["decay"] = trainer.optimizer.param_groups[0]["weight_decay"]

    yolo = YOLO(model)
    yolo.add_callback("on_train_batch_end", after_batch)
    yolo.add_callback("on_model_save", lambda trainer: seen.update(metrics=trainer.metrics))
    with no_trackers(), data_untouched():
        yolo.train(
            data=str(data),
            imgsz=SIZE,
            epochs=2,
            batch=BATCH,
            nbs=BATCH,
            optimizer="SGD",
            device="cpu",
            project=str(tmp_path_factory.mktemp("runs")),
            plots=False,
            save=False,
            val=False,
            verbose=False,
        )
    return seen


def test_watching_changes_nothing_of_ultralytics_own_training(
    watched: tuple[Ended, list[Point], Path], alone: dict[str, Any]
) -> None:
    ended, points, _ = watched
    assert ended.status == "finished", ended.error
    assert ended.steps == alone["updates"] == 2 * STEPS
    assert [point.steps for point in points] == list(range(1, 2 * STEPS + 1))
    assert [p.values["loss"] for p in points] == pytest.approx(alone["losses"], rel=1e-5)
    assert [p.values["learning_rate"] for p in points] == pytest.approx(alone["rates"])
    assert any("noise_scale" in point.values for point in points), "it was looked at on the way"
    assert alone["decay"] == pytest.approx(0.0005), "Ultralytics' own, for every batch size"
    for name, value in alone["metrics"].items():
        logged = name.replace("(", "").replace(")", "")
        assert ended.metrics[logged] == pytest.approx(value, abs=2e-5)
    losses = sum(value for name, value in alone["metrics"].items() if name.startswith("val/"))
    assert losses > 0 and ended.metrics["evaluation_loss"] == pytest.approx(losses)


def test_a_run_counts_images_and_says_how_it_stands(
    watched: tuple[Ended, list[Point], Path],
) -> None:
    ended, points, _ = watched
    assert [point.examples for point in points] == [4, 8, 10, 14, 18, 20]
    assert [point.epochs for point in points] == pytest.approx([0.4, 0.8, 1, 1.4, 1.8, 2])
    assert (ended.examples, ended.epochs, ended.reason) == (20, 2.0, "2 epochs")
    assert (ended.micro_batch_size, ended.out_of_memory_events) == (BATCH, 0)
    assert ended.learning_rate == 0.01
    assert ended.seconds == points[-1].seconds > 0
    assert {"loss", "evaluation_loss", "metrics/mAP50B", "train/box_loss"} <= ended.metrics.keys()


def test_a_run_leaves_nothing_behind(
    watched: tuple[Ended, list[Point], Path], factory: UltralyticsTraining, data: Path
) -> None:
    assert list(watched[2].iterdir()) == []
    assert list(data.parent.rglob("*.cache")) == []


def test_no_tracker_registers_itself_while_a_run_trains() -> None:
    from ultralytics.engine import trainer as engine

    tracked = type("SomeTrainer", (), {"callbacks": {}})()
    own = engine.callbacks.add_integration_callbacks
    with no_trackers():
        engine.callbacks.add_integration_callbacks(tracked)
    assert tracked.callbacks == {}
    assert engine.callbacks.add_integration_callbacks is own


def test_the_target_ends_a_run_where_it_is_reached(factory: UltralyticsTraining) -> None:
    ended, points, _ = ran(factory, plan_of(target=Target("mAP50", 0.0)))
    assert ended.status == "finished"
    assert ended.reason == "metrics/mAP50B reached 0 (target 0)"
    assert (ended.steps, points[-1].steps) == (1, 1)


def test_a_target_that_is_no_metric_is_refused_with_those_there_are(
    factory: UltralyticsTraining,
) -> None:
    with pytest.raises(rb.UsageError, match=r"no metric 'mAP51'; .*metrics/mAP50B.* and loss"):
        ran(factory, plan_of(target=Target("mAP51", 0.5)))


def test_time_that_is_up_ends_a_run(factory: UltralyticsTraining) -> None:
    ended, _, _ = ran(factory, plan_of(budget=1e-6))
    assert ended.status == "finished"
    assert (ended.steps, ended.examples) == (2, 8), "the first step is not timed"
    assert "s, the budget of" in ended.reason


def test_memory_that_runs_out_is_survived_in_parts_and_told(factory: UltralyticsTraining) -> None:
    with inject_out_of_memory("forward", (0, 1)):
        ended, _, events = ran(factory, PLAN)
    assert (ended.status, ended.steps) == ("finished", STEPS)
    assert (ended.out_of_memory_events, ended.micro_batch_size) == (2, BATCH // 2)
    assert [(e["kind"], e["place"]) for e in events] == [("out_of_memory", "forward")] * 2


def test_memory_that_is_too_small_for_one_image_is_a_result(factory: UltralyticsTraining) -> None:
    with inject_out_of_memory("forward", range(1000)):
        ended, points, _ = ran(factory, PLAN)
    assert ended.status == "out_of_memory"
    assert (ended.steps, points) == (0, [])
    assert ended.error is not None and ended.error["type"] == "NothingFitsError"


def test_a_loss_that_is_no_number_is_a_result(factory: UltralyticsTraining) -> None:
    key = RunKey(BATCH, 0, learning_rate_factor=1e30)
    ended, points, _ = ran(factory, plan_of(key=key))
    assert ended.status == "diverged"
    assert "nan" in ended.reason
    assert math.isnan(points[-1].values["loss"])


def test_a_batch_that_the_data_set_does_not_fill_is_a_result(factory: UltralyticsTraining) -> None:
    ended, points, _ = ran(factory, plan_of(key=RunKey(16, 0)))
    assert (ended.status, ended.steps, points) == ("failed", 0, [])
    assert "has 10 examples, fewer than a batch of 16" in ended.reason


def test_a_last_batch_of_one_small_image_is_a_result_as_normalization_has_nothing_to_go_by(
    data: Path,
) -> None:
    factory = from_spec("yolo26n.yaml", data=str(data), imgsz=32)
    assert factory is not None
    ended, _, _ = ran(factory, plan_of(key=RunKey(3, 0)))
    assert ended.status == "failed"
    assert "BatchNorm a single value per channel" in ended.reason


def test_what_would_fail_in_every_run_is_no_result(factory: UltralyticsTraining) -> None:
    with pytest.raises(rb.UsageError, match="'no_such_argument' is not a valid YOLO argument"):
        ran(factory, plan_of(settings={"no_such_argument": 1}))


def test_the_learning_rate_goes_with_the_batch_size_from_ultralytics_nominal_one(
    factory: UltralyticsTraining,
) -> None:
    assert factory.base_batch == 64
    assert UltralyticsTraining({"model": "yolo26n.yaml", "nbs": 32}).base_batch == 32
    sgd = [factors_of(factory, plan_of(RunKey(n, 0)), None) for n in (4, 64, 128)]
    assert sgd == [(1 / 16, 1 / 16), (1, 1), (2, 2)], "linear, where no noise scale is known"
    known = factors_of(factory, plan_of(key=RunKey(128, 0, 0.5), noise_scale=64), None)
    assert known == pytest.approx((2, 0.5 * 2 / 1.5)), "the gain of AdaScale"
    adam = factors_of(factory, plan_of(key=RunKey(4, 0)), (0.9, 0.999))
    assert adam == pytest.approx((1 / 16, 1 / 4))
    assert factors_of(factory, plan_of(rule="none"), None) == (1, 1)


def test_the_optimizer_is_one_that_stays_and_its_rate_is_its_own() -> None:
    asked = {"model": "yolo26n.yaml", "data": "parts.yaml", "nbs": 32}
    fixed = comparable_arguments(asked, {})
    assert fixed == {"data": "parts.yaml", "optimizer": "SGD", "lr0": 0.01}
    adam = comparable_arguments(asked, {"optimizer": "adamw"})
    assert (adam["lr0"], adam["warmup_bias_lr"]) == (0.001, 0.0)
    assert comparable_arguments(asked, {"lr0": 0.02})["lr0"] == 0.02
    for optimizer in ("auto", "RMSprop"):
        with pytest.raises(rb.UsageError, match="optimizer is one of SGD"):
            comparable_arguments(asked, {"optimizer": optimizer})
    for name in ("batch", "epochs", "patience", "project", "cfg", "compile"):
        with pytest.raises(rb.UsageError, match=f"{name} cannot be set in a study: "):
            comparable_arguments(asked, {name: 1})


def test_the_average_of_the_weights_holds_as_many_images_whatever_the_batch() -> None:
    """Of constant weights, so that only the share of the first ones is left to compare."""

    def decay(updates: float) -> float:
        return 0.9999 * (1 - math.exp(-updates / 2000))

    images = 64 * 4000

    def left(batch: int, since: int) -> float:
        scaled = averaging(decay, batch / 64)
        updates = range(since // batch + 1, images // batch + 1)
        return math.prod(scaled(n) for n in updates)

    for batch in (16, 256):
        assert left(batch, images // 2) == pytest.approx(left(64, images // 2), rel=0.01)


def test_a_metric_is_known_by_its_short_name_and_by_ultralytics_own(
    factory: UltralyticsTraining,
) -> None:
    names = ("mAP50", "metrics/mAP50(B)", "metrics/mAP50B", "mAP50-95M", "accuracy_top1", "loss")
    logged = [factory.metric_name(name) for name in names]
    assert logged == ["metrics/mAP50B"] * 3 + ["metrics/mAP50-95M", "metrics/accuracy_top1", "loss"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"processes": 2}, "several processes"), ({"sharpness": True}, "second derivatives")],
)
def test_what_a_frameworks_trainer_cannot_do_is_refused(
    factory: UltralyticsTraining, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(rb.UsageError, match=said):
        ran(factory, plan_of(**change))


def test_the_images_a_data_set_holds_are_as_before_a_look_at_them() -> None:
    from rightbatch.integrations.ultralytics._loop import _kept_images

    images = [None, torch.ones(1), None, torch.zeros(1)]
    data = SimpleNamespace(buffer=[3, 1], ims=list(images))
    held = data.buffer
    with _kept_images(data):
        data.buffer[:] = [1, 0]
        data.ims[3], data.ims[0] = None, torch.ones(2)
    assert data.buffer == [3, 1] and data.buffer is held
    assert all(now is before for now, before in zip(data.ims, images, strict=True))


@pytest.mark.parametrize("parts_of", [1, 2, 3])
def test_parts_of_a_batch_of_a_classifier_have_the_gradient_of_the_whole(parts_of: int) -> None:
    """Its loss is the mean over the images, where a detector's is their sum."""
    from ultralytics.nn.tasks import ClassificationModel

    from rightbatch.integrations.ultralytics._elastic import ElasticYolo

    torch.manual_seed(0)
    model = ClassificationModel("yolo26n-cls.yaml", nc=3, verbose=False).eval()
    batch = {"img": torch.rand(4, 3, 32, 32), "cls": torch.tensor([0, 2, 1, 0])}
    loss, items = model(batch)
    [whole] = torch.autograd.grad(loss, [model.model[-1].linear.weight])
    callbacks: dict[str, Any] = {}
    trainer = SimpleNamespace(
        args=SimpleNamespace(),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=4,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        add_callback=callbacks.__setitem__,
    )
    elastic = ElasticYolo(trainer, micro_batch_size=parts_of)
    callbacks["on_train_start"](trainer)
    parted, parted_items = model(batch)
    parted.backward()
    elastic.close()
    assert torch.allclose(model.model[-1].linear.weight.grad, whole, rtol=1e-4, atol=1e-6)
    assert torch.allclose(parted.detach(), loss.detach(), rtol=1e-5)
    assert torch.allclose(parted_items["loss"], items["loss"], rtol=1e-5)
