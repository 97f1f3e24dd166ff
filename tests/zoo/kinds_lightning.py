"""Lightning trainings of the kinds that people report about, each a small factory.

`rightbatch fit tests/zoo/kinds_lightning.py:one_cycle` runs one of them. Here are schedules,
optimizers and settings of the trainer; `KINDS` has them by name, with those of the modules
`kinds_lightning_data` and `kinds_lightning_modules`. `REFUSED` maps the name of a kind that cannot
be described to the words of its refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kinds_lightning_data
import kinds_lightning_modules
import torch
from lightning_parts import Module, loader, quiet_trainer

from rightbatch import Workload
from rightbatch.integrations.lightning import workload


def plain() -> Workload:
    return workload(Module(), loader(), loader(shuffle=False))


# Schedules.


def one_cycle() -> Workload:
    """OneCycleLR over the steps that the trainer estimates."""

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=int(module.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return workload(Module(configure), loader())


def plateau() -> Workload:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9.0)
        return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_loss"}

    return workload(Module(configure), loader(), loader(shuffle=False))


def plateau_on_training_loss() -> Workload:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "train_loss"}

    return workload(Module(configure), loader())


def epoch_schedule() -> Workload:
    """A schedule per epoch, which is Lightning's default interval, after a warm-up."""

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=1)
        decay = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[1])
        return [optimizer], [both]

    return workload(Module(configure), loader())


def lambda_over_epochs() -> Workload:
    """LambdaLR over the steps of an epoch and `trainer.max_epochs`, stepped every other step."""

    def configure(module: Any) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        trainer = module.trainer
        per_epoch = trainer.estimated_stepping_batches / trainer.max_epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 ** (step / per_epoch)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 2}]

    return workload(Module(configure), loader())


# Optimizers and the trainer's settings.


def lbfgs() -> Workload:
    return workload(Module(lambda module: torch.optim.LBFGS(module.parameters())), loader())


class Gan(Module):
    """Manual optimization with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def gan() -> Workload:
    return workload(Gan(), loader())


def two_optimizers() -> Workload:
    def configure(module: Any) -> Any:
        return [torch.optim.SGD(module.net[i].parameters(), lr=0.1) for i in (0, 2)]

    return workload(Module(configure), loader())


class OwnStep(Module):
    """Overrides how the optimizer is stepped, which only Lightning's own loop calls."""

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        super().optimizer_step(*arguments, **keywords)


def own_optimizer_step() -> Workload:
    return workload(OwnStep(), loader())


def trainer_settings() -> Workload:
    """Mixed precision, clipping, accumulation and a limit of the trainer."""
    trainer = quiet_trainer(
        precision="bf16-mixed",
        gradient_clip_val=0.5,
        accumulate_grad_batches=4,
        limit_train_batches=0.5,
    )
    return workload(Module(), loader(), trainer=trainer)


def limited_batches() -> Workload:
    return workload(Module(), loader(), trainer=quiet_trainer(limit_train_batches=2))


def half_precision() -> Workload:
    return workload(Module(), loader(), trainer=quiet_trainer(precision="bf16-true"))


def weight_averaging() -> Workload:
    from lightning.pytorch.callbacks import WeightAveraging

    return workload(Module(), loader(), trainer=quiet_trainer(callbacks=[WeightAveraging()]))


class AskingMore(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert self.trainer.fit_loop is not None
        return super().training_step(batch, batch_idx)


def asks_for_the_fit_loop() -> Workload:
    return workload(AskingMore(), loader())


_OWN = (
    plain,
    one_cycle,
    plateau,
    plateau_on_training_loss,
    epoch_schedule,
    lambda_over_epochs,
    lbfgs,
    gan,
    two_optimizers,
    own_optimizer_step,
    trainer_settings,
    limited_batches,
    half_precision,
    weight_averaging,
    asks_for_the_fit_loop,
)
KINDS: dict[str, Callable[[], Workload]] = {
    **{factory.__name__: factory for factory in _OWN},
    **kinds_lightning_data.KINDS,
    **kinds_lightning_modules.KINDS,
}

REFUSED = {
    "bucket_batch_sampler": "batch_sampler Buckets",
    "stream_of_batches": "whole batches",
    "dict_of_loaders": "several loaders",
    "step_returns_none": "returned no loss",
    "gan": "manual optimization",
    "lbfgs": "needs a closure",
    "two_optimizers": "configure_optimizers returned 2",
    "half_precision": "bf16-true",
    "asks_for_the_fit_loop": "'fit_loop'",
}
"""Kinds that no verb takes."""

TRAIN_REFUSED = {
    "stream": "map-style",
    "own_optimizer_step": "optimizer_step",
    "weight_averaging": "WeightAveraging",
}
"""Kinds that `fit` and `predict` take, and `train` does not."""
