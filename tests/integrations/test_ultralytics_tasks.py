"""Every task of Ultralytics, and what people give it, with the steps that the verbs run.

`python -m benchmarks.zoo_ultralytics` runs the same kinds with every verb by the command line. Here
each kind runs one or two of four in this process, in turn, and the user's files are hashed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rightbatch as rb
from benchmarks.zoo_ultralytics import KINDS, SIDE, Kind, hashes, write_data, write_model
from rightbatch._cli.options import literal
from rightbatch._training.distributed import opened
from rightbatch._training.protocol import LoopPlan, Observer

pytestmark = [pytest.mark.yolo, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ultralytics")

from rightbatch.integrations.ultralytics import (  # noqa: E402
    UltralyticsTraining,
    from_spec,
    without_trackers,
)

ANSWERED = [name for name in KINDS if "fit" not in KINDS[name].refused and name != "amp bf16"]
TASKS = list(KINDS)[:9]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import ultralytics.models  # noqa: F401
    from ultralytics.utils import LOGGER

    without_trackers()
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    yield
    LOGGER.setLevel(level)


def training_of(kind: Kind, folder: Path, **more: Any) -> UltralyticsTraining:
    (folder / "model").mkdir()
    model, data = write_model(kind, folder / "model"), write_data(kind, folder / kind.folder)
    arguments = {"imgsz": SIDE, "workers": 0, "plots": False} | dict(kind.arguments) | more
    made = from_spec(
        str(model), data=data, **{key: literal(str(value)) for key, value in arguments.items()}
    )
    assert made is not None
    return made


def step(training: UltralyticsTraining, folder: Path) -> None:
    """What `fit` and `tune` measure."""
    session = training.session("cpu", seed=0, inference=False)
    with contextlib.closing(session):
        session.step(3)
        assert session.evaluate(2) >= 2
        assert session.timed_step(2).computing > 0


def infer(training: UltralyticsTraining, folder: Path) -> None:
    """What `fit --inference` measures."""
    session = training.session("cpu", seed=0, inference=True)
    with contextlib.closing(session):
        assert session.evaluate(6) == 6


def follow(training: UltralyticsTraining, folder: Path) -> None:
    """What `predict` follows."""
    from rightbatch._predict.follow_framework import FrameworkFollower
    from rightbatch._predict.variant import Variant

    follower = FrameworkFollower(training)
    try:
        (trace,) = follower.traces([2], Variant(capability=8.9))
        assert trace.condensed().peak_bytes > 0
    finally:
        if follower._session is not None:
            follower._session[1].close()


class _Evaluation(Observer):
    """What `study` and `tune` measure between the steps."""

    def measure_epoch(self, loop: Any) -> dict[str, float]:
        loss, _, _ = next(loop.micro_batches(2))
        assert torch.isfinite(loss())
        measured: dict[str, float] = loop.evaluate()
        return measured


def study(training: UltralyticsTraining, folder: Path) -> None:
    plan = LoopPlan(batch_size=4, epochs=1, factors=lambda betas: (1.0, 1.0))
    training = UltralyticsTraining(
        {k: v for k, v in training.overrides.items() if k != "plots"} | {"optimizer": "SGD"}
    )
    with opened("cpu") as processes, training.loop(plan, processes, [_Evaluation()]) as loop:
        state = loop.run()
    assert state.steps > 0 and "evaluation_loss" in state.metrics


def train(training: UltralyticsTraining, folder: Path) -> None:
    options: dict[str, Any] = {"batch": 4, "epochs": 1, "device": "cpu", "progress": False}
    done = rb.train(training, out=folder / "out", **options)
    assert done.steps > 0 and done.metrics
    best = (folder / "out" / "weights" / "best.pt").read_bytes()
    with pytest.raises(rb.UsageError, match=r"holds a training.*another --out"):
        rb.train(training, out=folder / "out", **options)
    with pytest.raises(rb.UsageError, match=r"yolo train resume model=.*last\.pt"):
        rb.train(training, out=folder / "out", resume=True, **options)
    assert (folder / "out" / "weights" / "best.pt").read_bytes() == best


VERBS = (step, infer, study, follow)
"""`follow` takes as long as the others together, and depends on the task and the model only."""
CELLS = [
    *((name, verb) for at, name in enumerate(TASKS) for verb in (VERBS[at % 2], VERBS[2 + at % 2])),
    *((name, VERBS[at % 3]) for at, name in enumerate(ANSWERED) if name not in TASKS),
    ("one mask per object", follow),
    ("rect", follow),
    ("amp bf16", follow),
]


@pytest.mark.parametrize(
    ("name", "verb"), CELLS, ids=[f"{name}-{verb.__name__}" for name, verb in CELLS]
)
def test_a_kind_is_measured_and_its_files_stay_as_they_are(
    name: str, verb: Any, tmp_path: Path
) -> None:
    kind = KINDS[name]
    training = training_of(kind, tmp_path)
    before = hashes(tmp_path / kind.folder)
    verb(training, tmp_path)
    assert hashes(tmp_path / kind.folder) == before


def test_a_cache_on_the_disk_replaces_no_array_of_ones_own(tmp_path: Path) -> None:
    """Ultralytics takes every `.npy` beside an image for its cache.

    ultralytics/ultralytics#17372, #5712
    """
    kind = Kind(data={"arrays": True}, arguments={"cache": "disk"})
    training = training_of(kind, tmp_path)
    unlike = sorted((tmp_path / "user" / "images" / "val").glob("*.npy"))
    for path in unlike:  # these are made as a cache
        path.unlink()
    before = hashes(tmp_path / "user")
    train(training, tmp_path)
    after = hashes(tmp_path / "user")
    made = {str(path.relative_to(tmp_path / "user")) for path in unlike}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == made


@pytest.mark.parametrize("name", ["detect", "classify"])
def test_a_second_training_replaces_no_weights(name: str, tmp_path: Path) -> None:
    training = training_of(KINDS[name], tmp_path)
    before = hashes(tmp_path / "user")
    train(training, tmp_path)
    assert hashes(tmp_path / "user") == before


def test_an_interrupted_training_says_how_it_goes_on(tmp_path: Path) -> None:
    class Interruption(Observer):
        def on_step(self, loop: Any, report: Any) -> None:
            if loop.state.epoch == 1:
                raise KeyboardInterrupt

    training = training_of(KINDS["detect"], tmp_path)
    plan = LoopPlan(batch_size=4, epochs=3, out=tmp_path / "out")
    message = r"interrupted after 3 updates; continue with yolo train resume model=.*last\.pt"
    with opened("cpu") as processes, pytest.raises(KeyboardInterrupt, match=message):  # noqa: SIM117
        with training.loop(plan, processes, [Interruption()]) as loop:
            loop.run()


@pytest.mark.parametrize("name", [name for name in KINDS if "fit" in KINDS[name].refused])
def test_what_cannot_be_measured_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    with pytest.raises(rb.UsageError, match=kind.refused["fit"]):
        step(training_of(kind, tmp_path), tmp_path)
    assert not list(tmp_path.glob("*_split"))


def test_bf16_without_a_gpu_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(rb.UsageError, match=r"amp=bf16 on CUDA only.*amp=False"):
        step(training_of(KINDS["amp bf16"], tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 8}, "batch cannot be given here: .*train --batch"),
        ({"project": "runs"}, "project cannot be given here: .*--out"),
        ({"task": "segment"}, "task cannot be given here: the model's name"),
    ],
)
def test_arguments_that_a_verb_sets_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(rb.UsageError, match=message):
        training_of(KINDS["detect"], tmp_path, **arguments)


def test_the_model_is_the_one_that_the_trainer_builds(tmp_path: Path) -> None:
    """A checkpoint of 80 classes and 17 keypoints, and a data set of 2 classes and 2 keypoints."""
    training = training_of(KINDS["checkpoint with other keypoints"], tmp_path)
    session = training.session("cpu", seed=0, inference=False)
    with contextlib.closing(session):
        head = session.modules()[0].model[-1]
        assert (head.nc, list(head.kpt_shape)) == (2, [2, 3])


def test_every_rectangular_batch_fits_into_the_probe(tmp_path: Path) -> None:
    """Ultralytics pads validation batches by half a stride: they are larger than squares."""
    training = training_of(KINDS["rect"], tmp_path)
    session: Any = training.session("cpu", seed=0, inference=False)
    with contextlib.closing(session):
        for loader, worst in (
            (session._trainer.train_loader, session._worst_training_batch),
            (session._trainer.test_loader, session._validation_batch),
        ):
            size = loader.batch_size
            actual = [batch["img"].shape for batch in loader]
            largest = max(shape.numel() // shape[0] for shape in actual)
            assert worst(size)["img"][0].numel() == largest


@pytest.mark.parametrize(
    ("images", "batch_size", "name"), [(20_000, 64, "MuSGD"), (20_000, 8192, "AdamW")]
)
def test_the_optimizer_is_the_one_that_auto_chooses_for_the_size(
    images: int, batch_size: int, name: str, tmp_path: Path
) -> None:
    training = training_of(KINDS["classify"], tmp_path, epochs=100)
    session: Any = training.session("cpu", seed=0, inference=False)
    with contextlib.closing(session):
        session._train_data = range(images)
        session._set_batch(batch_size)
        assert type(session.optimizer).__name__ == name


def test_masks_of_objects_go_with_their_objects(tmp_path: Path) -> None:
    """Two images and two objects, both in the second: a mask for each object, or for each image."""
    from rightbatch.integrations.ultralytics._batches import split, with_objects

    batch = {
        "img": torch.zeros(2, 3, 8, 8),
        "batch_idx": torch.tensor([1.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "masks": torch.stack([torch.full((4, 4), 5.0), torch.full((4, 4), 6.0)]),
    }
    first, second = split(batch, 1, overlap=False)
    assert (len(first["masks"]), second["masks"][:, 0, 0].tolist()) == (0, [5.0, 6.0])
    first, second = split(batch, 1, overlap=True)
    assert (first["masks"][0, 0, 0], second["masks"][0, 0, 0]) == (5.0, 6.0)
    full = with_objects(batch, 2, 3, overlap=False)
    assert full["masks"][:, 0, 0].tolist() == [5.0, 5.0, 5.0, 5.0, 6.0, 5.0]
    assert with_objects(batch, 2, 3, overlap=True)["masks"] is batch["masks"]


class TestArgumentsInAFile:
    """`cfg=args.yaml`, the arguments of an earlier run; ultralytics/ultralytics#508."""

    @staticmethod
    def training(folder: Path, **more: Any) -> UltralyticsTraining:
        kind = KINDS["detect"]
        (folder / "model").mkdir()
        model, data = write_model(kind, folder / "model"), write_data(kind, folder / "user")
        earlier = folder / "earlier"
        earlier.mkdir()
        file = earlier / "args.yaml"
        file.write_text(
            f"task: detect\nmode: train\nmodel: other.pt\ndata: {data}\nsave_dir: {earlier}\n"
            "project: runs\nname: train\nresume: null\nbatch: 8\nnbs: 64\nepochs: 100\nseed: 0\n"
            f"imgsz: {SIDE}\nlr0: 0.02\ncache: disk\nmosaic: 0.0\n"
        )
        made = from_spec(str(model), cfg=str(file), **more)
        assert made is not None
        return made

    def test_they_are_used_where_they_are_not_given(self, tmp_path: Path) -> None:
        overrides = self.training(tmp_path, mosaic=0.5).overrides
        assert overrides.keys() == {"model", "data", "imgsz", "lr0", "cache", "mosaic"}
        assert (overrides["lr0"], overrides["mosaic"], overrides["imgsz"]) == (0.02, 0.5, SIDE)

    @pytest.mark.parametrize("verb", [step, train])
    def test_the_folder_of_the_earlier_run_stays_as_it_is(self, verb: Any, tmp_path: Path) -> None:
        training = self.training(tmp_path, cache=False, plots=False)
        before = {name: hashes(tmp_path / name) for name in ("user", "earlier")}
        verb(training, tmp_path)
        assert {name: hashes(tmp_path / name) for name in before} == before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "no cfg file"),
            ("lr0: [", "is not YAML"),
            ("fast", "has no arguments"),
            ("mosiac: 0.5", "did you mean mosaic"),
        ],
    )
    def test_a_file_that_is_none_is_refused(
        self, text: str | None, message: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "mine.yaml"
        if text is not None:
            file.write_text(text)
        with pytest.raises(rb.UsageError, match=message):
            from_spec("yolo26n.yaml", data="coco8.yaml", cfg=str(file))


def test_pasted_objects_are_among_the_most(tmp_path: Path) -> None:
    """ultralytics/ultralytics#17961: the memory of a segmentation grows with its objects."""
    training = training_of(KINDS["segment"], tmp_path, copy_paste=1.0, mosaic=0.0)
    session: Any = training.session("cpu", seed=0, inference=False)
    with contextlib.closing(session):
        data = session._train_data
        actual = max(len(data[index]["cls"]) for _ in range(3) for index in range(len(data)))
        batch = session._worst_training_batch(2)
        assert 2 < actual <= len(batch["cls"]) // 2 == 4


def test_a_training_by_time_goes_on_after_its_first_epoch(tmp_path: Path) -> None:
    """Ultralytics then makes its schedule anew; ultralytics/ultralytics#7054."""
    training = training_of(KINDS["detect"], tmp_path, time=0.0005)
    plan = LoopPlan(batch_size=4, epochs=1, out=tmp_path / "out")
    with opened("cpu") as processes, training.loop(plan, processes, []) as loop:
        assert loop.run().steps


class TestInstalled:
    """`install()`, without running its measurement."""

    @pytest.fixture
    def trainer(self, tmp_path: Path) -> Any:
        from ultralytics.models.yolo.detect import DetectionTrainer

        kind = KINDS["detect"]
        (tmp_path / "model").mkdir()
        overrides = {
            "model": str(write_model(kind, tmp_path / "model")),
            "data": str(write_data(kind, tmp_path / "user")),
            "imgsz": SIDE,
            "batch": -1,
            "project": str(tmp_path / "runs"),
            "device": "cpu",
        }

        class Trainer(DetectionTrainer):
            lock, again = threading.Lock(), threading.RLock()

        return Trainer(overrides=overrides)

    def test_a_trainer_with_locks_is_sent_to_the_probe(self, trainer: Any) -> None:
        import cloudpickle

        from rightbatch.integrations.ultralytics._install import _pickled

        there, model, _ = cloudpickle.loads(_pickled((type(trainer), None, {})))
        assert there.__name__ == "Trainer" and model is None
        for name in ("lock", "again"):
            with getattr(there, name):
                pass

    def test_a_trainer_is_made_again_with_what_the_script_has_put_on_it(
        self, trainer: Any, tmp_path: Path
    ) -> None:
        """Trainers that need more arguments, and attributes that callbacks set."""
        from rightbatch.integrations.ultralytics._install import _own_attributes, _pickled
        from rightbatch.integrations.ultralytics._setup import _built

        class Weighted(type(trainer)):  # type: ignore[misc]
            def __init__(self, weights: Any, cfg: Any = None, **options: Any) -> None:
                super().__init__(**options)
                self.weights = weights

        arguments = {key: vars(trainer.args)[key] for key in ("model", "data", "imgsz", "project")}
        arguments |= {"device": "cpu", "batch": 2}
        made = Weighted([1.0, 2.0], overrides=arguments)
        made.added_by_a_callback, made.not_picklable = {"a": 1}, (each for each in ())
        live = _pickled((Weighted, None, _own_attributes(made)))
        again = _built(arguments | {"name": "again"}, live)
        assert (again.weights, again.added_by_a_callback) == ([1.0, 2.0], {"a": 1})
        assert again.save_dir != made.save_dir and not hasattr(again, "not_picklable")

    @pytest.mark.parametrize(
        ("imgsz", "stride", "left"), [([40, 64], 32, 12), ([32, 20], 32, 11), (64, 64, 11)]
    )
    def test_a_last_batch_of_one_image_is_avoided_where_ultralytics_refuses_it(
        self, trainer: Any, imgsz: Any, stride: int, left: int
    ) -> None:
        """A list of sizes is their largest; ultralytics/ultralytics#7690."""
        from rightbatch.integrations.ultralytics._install import _without_single_image

        trainer.args.imgsz = imgsz
        trainer.model = torch.nn.Module()
        trainer.model.stride = torch.tensor([8, stride])
        assert _without_single_image(12, 25, trainer) == left

    def test_a_failed_measurement_costs_the_training_nothing_unless_strict(
        self, trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from ultralytics.engine.trainer import BaseTrainer
        from ultralytics.utils import LOGGER

        from rightbatch.integrations.ultralytics import install, uninstall

        trained: list[Any] = []
        monkeypatch.setattr(BaseTrainer, "train", lambda self: trained.append(self.args.batch))
        LOGGER.setLevel(logging.WARNING)
        monkeypatch.setattr(LOGGER, "propagate", True)
        type(trainer).unpicklable = (each for each in ())
        try:
            install()
            trainer.train()
            assert trained == [-1], "Ultralytics' own estimate"
            assert "batch=-1 could not be measured" in caplog.text
            assert "Trainer cannot be sent to a probe's process" in caplog.text
            install(strict=True)
            with pytest.raises(rb.UsageError, match="cannot be sent to a probe's process"):
                trainer.train()
        finally:
            uninstall()
        assert trained == [-1]
