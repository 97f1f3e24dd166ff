"""What a module's steps return reaches its hooks, and counters and loggers are as in Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import rightbatch as rb

pytest.importorskip("lightning")
from framework_checks import train
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning_parts import EXAMPLES, Module, loader, quiet_trainer

from rightbatch.integrations.lightning import ElasticBatches, workload
from rightbatch.integrations.lightning._hooks import call_step

pytestmark = pytest.mark.filterwarnings("ignore")


class Returning(Module):
    """Returns predictions from its steps, which its hooks read.

    Lightning-AI/pytorch-lightning#4689, #5518, #7750
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = self(batch[0])
        loss = cross_entropy(out, batch[1])
        return {
            "loss": loss,
            "predictions": out,
            "accuracy": (out.argmax(1) == batch[1]).float().mean(),
        }

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        out = self(batch[0])
        self.log("val_loss", cross_entropy(out, batch[1]))
        return {"predictions": out}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        right = (outputs["predictions"].argmax(1) == batch[1]).float().mean()
        assert float(outputs["accuracy"]) == pytest.approx(float(right))
        self.seen.append(("train", tuple(outputs["predictions"].shape)))

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        right = (outputs["predictions"].argmax(1) == batch[1]).float()
        self.log("counted", right.sum(), reduce_fx="sum")
        self.seen.append(("validation", tuple(outputs["predictions"].shape)))


class Reading(Callback):
    """A callback that reads what the module's own hook does not."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.shapes.append(tuple(outputs["predictions"].shape))


def fitted(module: Any, callbacks: Any, **options: Any) -> Any:
    trainer = quiet_trainer(callbacks=callbacks, **{"max_epochs": 2} | options)
    trainer.fit(module, loader(shuffle=False), loader(shuffle=False))
    return trainer


def test_hooks_get_the_outputs_of_the_whole_batch() -> None:
    found: list[Any] = []
    for parts in ([], [ElasticBatches(micro_batch_size=3)]):
        torch.manual_seed(0)
        module, reading = Returning(), Reading()
        trainer = fitted(module, [reading, *parts], num_sanity_val_steps=0)
        found.append((module.seen, reading.shapes, float(trainer.callback_metrics["counted"])))
    assert found[0] == found[1]
    assert len(found[1][1]) == 2 * EXAMPLES // 8


def test_hooks_of_a_workload_get_the_outputs(tmp_path: Path) -> None:
    module = Returning()
    result = train(
        lambda: workload(module, loader(shuffle=False), loader(shuffle=False)),
        tmp_path,
        batch=8,
        micro_batch=3,
    )
    shapes = [shape for step, shape in module.seen if step == "train"]
    assert shapes == [(8, 2)] * (EXAMPLES // 8)
    validated = [shape[0] for step, shape in module.seen if step == "validation"]
    assert sum(validated) == EXAMPLES
    with torch.no_grad():
        right = [(module(x).argmax(1) == y).sum() for x, y in loader(shuffle=False)]
    assert result.metrics["counted"] == float(sum(right))


class Unjoinable(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": cross_entropy(self(batch[0]), batch[1]), "weights": self.net[0].weight}

    def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
        assert "loss" in outputs
        outputs["weights"].sum()


def test_an_output_that_cannot_be_joined_is_refused_where_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(rb.UsageError, match="'weights' cannot be joined"):
        fitted(Unjoinable(), [ElasticBatches(micro_batch_size=4)])
    with pytest.raises(rb.UsageError, match="'weights' cannot be joined"):
        train(lambda: workload(Unjoinable(), loader()), tmp_path, batch=8, micro_batch=4)


@pytest.mark.parametrize(
    "step",
    [
        lambda batch: (batch,),
        lambda batch, i: (batch, i),
        lambda batch, i, dataloader_idx=0: (batch, i, dataloader_idx),
        lambda batch, *, option=None: (batch,),
        lambda batch, **options: (batch,),
        lambda *arguments: arguments,
    ],
)
def test_a_step_gets_its_arguments_by_position(step: Callable[..., Any]) -> None:
    """Names are the user's: `validation_step(self, batch, i, dataloader_idx)`."""
    given = call_step(step, "batch", 5, 2)
    assert given == ("batch", 5, 2)[: len(given)]


def test_a_second_validation_loader_is_known_by_its_index_only() -> None:
    class Two(Module):
        def validation_step(self, batch: Any, i: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    trainer = quiet_trainer(max_epochs=1, callbacks=[ElasticBatches(micro_batch_size=4)])
    trainer.fit(Two(), loader(), [loader(), loader()])
    assert {"val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"} <= set(
        trainer.callback_metrics
    )


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_steps_are_counted_across_trainings_with_and_without_it(
    first: bool, second: bool, tmp_path: Path
) -> None:
    """Manual optimization has its own counter; Lightning-AI/pytorch-lightning#12274, #17167."""

    def callbacks(with_it: bool) -> list[Any]:
        return [ElasticBatches(micro_batch_size=4)] if with_it else []

    trainer = fitted(Module(), callbacks(first), max_epochs=1)
    assert trainer.global_step == EXAMPLES // 8
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    continued = quiet_trainer(max_epochs=3, callbacks=callbacks(second))
    continued.fit(Module(), loader(), loader(), ckpt_path=tmp_path / "one.ckpt")
    assert continued.global_step == 3 * EXAMPLES // 8


def test_accumulation_by_a_callback_is_refused_by_name() -> None:
    callbacks = [GradientAccumulationScheduler({1: 2}), ElasticBatches()]
    with pytest.raises(rb.UsageError, match="GradientAccumulationScheduler cannot be used"):
        fitted(Module(), callbacks)


class Tuned(Module):
    def __init__(self) -> None:
        super().__init__()
        self.lr = 0.01

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("order", [1, -1])
def test_a_learning_rate_is_found_by_lightnings_own_training(order: int, tmp_path: Path) -> None:
    """Its search is automatic optimization; Lightning-AI/pytorch-lightning#21030."""
    found = []
    for parts in ([], [ElasticBatches(micro_batch_size=4)]):
        torch.manual_seed(0)
        module = Tuned()
        callbacks = [LearningRateFinder(num_training_steps=20, early_stop_threshold=None), *parts]
        options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
        trainer = fitted(module, callbacks[::order], **options)
        found.append((module.lr, trainer.global_step, *module.state_dict().values()))
    assert found[0][:2] == pytest.approx(found[1][:2])
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


class Writing(Module):
    """Writes to its logger itself; Lightning-AI/pytorch-lightning#1830, #939."""

    def on_train_start(self) -> None:
        self.logger.log_hyperparams({"lr": 0.01})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.logger.experiment.add_scalar("loss", loss, self.global_step)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.is_last_batch:
            self.log("last", 1.0)


def test_what_a_module_writes_to_its_logger_itself_is_discarded(tmp_path: Path) -> None:
    result = train(lambda: workload(Writing(), loader()), tmp_path)
    assert result.steps


class WritingFiles(Module):
    def on_train_epoch_end(self) -> None:
        Path(self.logger.log_dir, "image.txt").write_text("")


def test_a_folder_of_the_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rb.UsageError, match="asks its logger for a folder"):
        train(lambda: workload(WritingFiles(), loader()), tmp_path)


class Asking(Module):
    def on_train_start(self) -> None:
        assert self.logger is None


def test_a_trainer_without_a_logger_has_none(tmp_path: Path) -> None:
    def factory() -> rb.Workload:
        return workload(Asking(), loader(), trainer=quiet_trainer())

    assert train(factory, tmp_path).steps
