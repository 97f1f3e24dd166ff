"""Lightning trainings of every kind: trained as by Lightning, measured, or refused by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rightbatch as rb
from rightbatch._training.resolve import resolve

pytest.importorskip("lightning")
import kinds_lightning as kinds
import kinds_lightning_data
import lightning as L
from framework_checks import check_fit, check_followed, check_steps, check_training, weights
from kinds_lightning_data import Odd
from kinds_lightning_modules import Dictionary, Skipping, Teacher
from lightning_parts import EXAMPLES, Module, data, loader
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, WeightedRandomSampler

from rightbatch.integrations.lightning import ElasticBatches
from rightbatch.integrations.lightning import workload as described

pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = {"compiled"}  # compiles for every size
ALL = sorted(kinds.KINDS)


def train(factory: Callable[[], Any], folder: Path, **options: Any) -> rb.TrainResult:
    defaults = {"batch": 8, "micro_batch": 4, "epochs": 2, "device": "cpu", "progress": False}
    return rb.train(factory, out=folder / "run", **defaults | options)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SLOW])
def test_its_step_is_measured_at_any_size_or_refused(name: str) -> None:
    check_steps(kinds, name)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SLOW])
def test_it_trains_to_the_end_or_is_refused(name: str, tmp_path: Path) -> None:
    check_training(kinds, name, lambda factory: train(factory, tmp_path))


EQUAL = (
    "plain",
    "one_cycle",
    "plateau",
    "plateau_on_training_loss",
    "epoch_schedule",
    "lambda_over_epochs",
    "own_sampler",
    "data_module",
    "other_validation_collate",
    "step_returns_a_dictionary",
    "step_asks_for_the_epoch",
    "teacher",
    "configure_model",
    "limited_batches",
)


@pytest.mark.parametrize("name", EQUAL)
def test_it_ends_at_the_weights_of_lightning(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the data, and with its batch size, each update is Lightning's."""
    home = sys.modules[kinds.KINDS[name].__module__]  # where its factory looks these names up
    monkeypatch.setattr(home, "loader", partial(loader, shuffle=False))
    if name == "data_module":
        own = partial(DataLoader, shuffle=False)
        monkeypatch.setattr(home, "DataLoader", lambda data, **o: own(data, batch_size=8))
    train(kinds.KINDS[name], tmp_path, micro_batch=8)
    monkeypatch.setattr(home, "workload", lambda *given, **more: (given, more))
    torch.manual_seed(0)
    (module, *data), more = kinds.KINDS[name]()  # type: ignore[misc]
    given = more.get("trainer")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        limit_train_batches=given.limit_train_batches if given else 1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, *data)
    expected = list(module.state_dict().values())
    for mine, theirs in zip(weights(tmp_path), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["plateau", "epoch_schedule", "own_sampler", "teacher"])
def test_a_resumed_training_ends_at_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rightbatch.integrations.lightning._run import LightningRun

    train(kinds.KINDS[name], tmp_path, checkpoint_seconds=0)
    undisturbed = weights(tmp_path)
    end = LightningRun.on_step_end
    steps = 0

    def ending(self: Any, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise RuntimeError("the power went")
        end(self, *arguments)

    other = tmp_path / "other"
    other.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(LightningRun, "on_step_end", ending)
        with pytest.raises(rb.WorkloadError, match="the power went"):
            train(kinds.KINDS[name], other, checkpoint_seconds=0)
    train(kinds.KINDS[name], other, checkpoint_seconds=0, resume=True)
    for mine, theirs in zip(weights(other), undisturbed, strict=True):
        assert torch.equal(mine, theirs)


class Recorded(Dataset[Any]):
    """Remembers the indices that were asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> Any:
        self.seen.append(index)
        return data()[index]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (lambda: SubsetRandomSampler(range(10, 20)), set(range(10, 20))),
        (lambda: WeightedRandomSampler([1.0] * 5 + [0.0] * 43, 40), set(range(5))),
        (lambda: Odd(), set(range(1, 48, 2))),
    ],
)
def test_only_the_examples_of_the_sampler_are_used(
    sampler: Callable[[], Any], expected: set[int], tmp_path: Path
) -> None:
    data = Recorded()
    loader = DataLoader(data, batch_size=8, sampler=sampler())
    train(lambda: described(Module(), loader), tmp_path)
    assert set(data.seen) == expected
    data.seen.clear()
    session = resolve(lambda: described(Module(), loader)).session("cpu", seed=0, inference=False)
    for _ in range(3):
        session.step(8)
    assert set(data.seen) <= expected


def test_every_epoch_of_a_sampler_is_drawn_anew_and_alike_for_a_seed() -> None:
    sampler = WeightedRandomSampler([1.0] * EXAMPLES, 20)
    make = partial(loader, shuffle=False, sampler=sampler)
    one, other = (described(Module(), make()).order for _ in range(2))
    assert one is not None and other is not None
    assert list(one(0, 1)) == list(other(0, 1))
    assert list(one(0, 1)) != list(one(0, 2)) != list(one(1, 2))


def test_what_validation_logs_are_the_metrics_of_the_whole_data(tmp_path: Path) -> None:
    parts = train(kinds.plain, tmp_path, micro_batch=5)  # the last part is smaller
    whole = train(kinds.plain, tmp_path / "whole", micro_batch=48)
    for name in ("val_loss", "val_accuracy", "evaluation_loss"):
        assert parts.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-4)


def test_the_trainer_of_a_training_knows_its_steps(tmp_path: Path) -> None:
    asked: list[Any] = []

    def configure(module: Any) -> Any:
        trainer = module.trainer
        asked.append((trainer.estimated_stepping_batches, trainer.max_epochs))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    train(lambda: described(Module(configure), loader()), tmp_path, epochs=3)
    assert asked[-1] == (18, 3)


def test_a_missing_metric_of_a_schedule_is_named(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_f1"}

    with pytest.raises(rb.UsageError, match=r"'val_f1', which was not logged.*val_loss"):
        train(lambda: described(Module(configure), loader(), loader()), tmp_path)


@pytest.mark.parametrize("name", ["plain", "data_module", "other_validation_collate"])
def test_its_step_can_be_followed_without_its_memory(name: str) -> None:
    check_followed(kinds, name)


@pytest.mark.slow
def test_fit_answers_by_the_name_of_a_function() -> None:
    check_fit(kinds_lightning_data, "weighted_sampler", 16)


def _fitted(module: Any, callbacks: Sequence[Any]) -> list[Tensor]:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(shuffle=False), loader(shuffle=False))
    return list(module.state_dict().values())


class BeforeZeroGrad(Teacher):
    """Updates its teacher in a hook that only automatic optimization calls."""

    def on_train_batch_end(self, *_: Any) -> None:
        pass

    def on_before_zero_grad(self, optimizer: Any) -> None:
        super().on_train_batch_end(None, None, 0)


@pytest.mark.parametrize(
    "make",
    [
        Teacher,
        BeforeZeroGrad,
        Dictionary,
        lambda: Module(lambda module: _watching(module, "val_loss")),
    ],
)
def test_elastic_batches_trains_as_lightning(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    plain = _fitted(make(), [])
    torch.manual_seed(0)
    elastic = _fitted(make(), [ElasticBatches(micro_batch_size=4)])
    for one, other in zip(plain, elastic, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def _watching(module: Any, monitor: str) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9.0)
    return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": monitor}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (kinds.OwnStep, "optimizer_step, which ElasticBatches does not call"),
        (lambda: Module(lambda m: torch.optim.LBFGS(m.parameters())), "LBFGS"),
        (lambda: Module(lambda m: _watching(m, "val_f1")), "'val_f1', which was not logged"),
        (Skipping, "returned no loss"),
        (kinds.Gan, "manual optimization"),
    ],
)
def test_elastic_batches_refuses_by_name(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(rb.UsageError, match=words):
        _fitted(make(), [ElasticBatches(micro_batch_size=4)])


def test_elastic_batches_keeps_averaged_weights() -> None:
    from lightning.pytorch.callbacks import WeightAveraging

    results = []
    for callbacks in ([], [ElasticBatches(micro_batch_size=4)]):
        torch.manual_seed(0)
        results.append(_fitted(Module(), [WeightAveraging(), *callbacks]))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
