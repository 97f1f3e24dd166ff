"""Kinds of Lightning modules: what their steps return and ask, and how they are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_parts import Module, loader
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rightbatch import Workload
from rightbatch.integrations.lightning import workload

# Steps.


class Dictionary(Module):
    def training_step(self, batch: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without a batch index."""
        out = self(batch[0])
        return {"loss": cross_entropy(out, batch[1]), "out": out.detach()}


def step_returns_a_dictionary() -> Workload:
    return workload(Dictionary(), loader())


class Skipping(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


def step_returns_none() -> Workload:
    return workload(Skipping(), loader())


class Annealed(Module):
    """A loss that depends on the epoch, the step and what earlier hooks made."""

    def on_fit_start(self) -> None:
        self.started = torch.ones((), device=self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        weight = self.started / (1 + self.current_epoch + self.global_step)
        self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        gathered = self.all_gather(batch[0])
        return weight * cross_entropy(self(gathered), batch[1])


def step_asks_for_the_epoch() -> Workload:
    return workload(Annealed(), loader())


class Teacher(Module):
    """An average of the weights, updated by a hook after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(6, 2).requires_grad_(False)
        self.student = nn.Linear(6, 2)
        self.register_buffer("updates", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        target = self.teacher(batch[0]).softmax(1)
        return cross_entropy(self.student(batch[0]), target) + cross_entropy(
            self.student(batch[0]), batch[1]
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.updates += 1
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for mine, other in pairs:
            mine.data.lerp_(other.data, 0.1)


def teacher() -> Workload:
    return workload(Teacher(), loader())


class Remembering(Module):
    """Validation that uses the training's state, and collects outputs for the epoch's end."""

    def on_validation_epoch_start(self) -> None:
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.last_batch = batch[0].mean()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.outputs.append(self(batch[0]) + self.last_batch)

    def on_validation_epoch_end(self) -> None:
        self.log("examples", float(len(torch.cat(self.outputs))))


def validation_collects() -> Workload:
    return workload(Remembering(), loader(), loader(shuffle=False))


# Modules.


class Configured(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(6, 2))


def configure_model() -> Workload:
    return workload(Configured(), loader())


class Lazy(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(2))


def lazy_modules() -> Workload:
    return workload(Lazy(), loader())


class WithHyperparameters(Module):
    def __init__(self, backbone: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(backbone, nn.Linear(width, 2))


def hyperparameters_with_a_module() -> Workload:
    return workload(WithHyperparameters(nn.Linear(6, 8)), loader())


def compiled() -> Workload:
    module: Any = torch.compile(Module(), backend="eager")
    return workload(module, loader(), loader(shuffle=False))


class Normalized(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def batch_norm() -> Workload:
    return workload(Normalized(), loader(drop_last=True), loader(shuffle=False))


KINDS: dict[str, Callable[[], Workload]] = {
    factory.__name__: factory
    for factory in (
        step_returns_a_dictionary,
        step_returns_none,
        step_asks_for_the_epoch,
        teacher,
        validation_collects,
        configure_model,
        lazy_modules,
        hyperparameters_with_a_module,
        compiled,
        batch_norm,
    )
}
