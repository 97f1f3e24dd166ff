"""Lightning's schedules, by update or by epoch, as the one schedule of a `Workload`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rightbatch._errors import UsageError


def configured(module: Any, package: str) -> tuple[Optimizer, list[Any]]:
    """Return the optimizer of `configure_optimizers`, and its schedules as Lightning reads them.

    Raises:
        UsageError: if there are several optimizers, or none.
    """
    lightning = import_module(f"{package}.core.optimizer")
    result = module.configure_optimizers()
    if result is None:
        raise UsageError("configure_optimizers must return an optimizer; got None")
    optimizers, schedules, monitor = lightning._configure_optimizers(result)
    if len(optimizers) != 1:
        raise UsageError(
            f"a Workload has one optimizer; configure_optimizers returned {len(optimizers)}. "
            "Measure the script as a command: `rightbatch fit -- python train.py --batch-size "
            "{batch}`"
        )
    if not isinstance(optimizers[0], Optimizer):
        raise UsageError(
            f"configure_optimizers must return a torch optimizer; got {optimizers[0]!r:.60}"
        )
    return optimizers[0], lightning._configure_schedulers_automatic_opt(schedules, monitor)


class IntervalSchedule:
    """Steps each of Lightning's schedules at its interval: every `step` or `epoch`, by frequency.

    `step` is called after every update. Schedules that watch a metric are stepped by `step_epoch`.
    """

    def __init__(self, configs: Sequence[Any], steps_per_epoch: int) -> None:
        self._configs = list(configs)
        self._steps_per_epoch = max(steps_per_epoch, 1)
        self.last_epoch = 0  # updates so far: the name that schedules of torch have

    @property
    def _schedulers(self) -> list[Any]:
        """The schedules inside, as in SequentialLR; scaling the learning rate needs them."""
        return [config.scheduler for config in self._configs]

    def step(self) -> None:
        """Count an update, and step the schedules whose interval it ends."""
        self.last_epoch += 1
        for config in self._configs:
            every = config.frequency
            if config.interval == "epoch":
                every *= self._steps_per_epoch
            if not config.reduce_on_plateau and self.last_epoch % every == 0:
                config.scheduler.step()

    def watching(self, epoch: int) -> list[Any]:
        """Return the schedules that need their metric after `epoch`.

        Raises:
            UsageError: for one that watches a metric every few steps.
        """
        watching = [config for config in self._configs if config.reduce_on_plateau]
        for config in watching:
            if config.interval != "epoch":
                raise UsageError(
                    f"{type(config.scheduler).__name__} watches {config.monitor!r} every "
                    f'{config.frequency} steps; use "interval": "epoch"'
                )
        return [config for config in watching if (epoch + 1) % config.frequency == 0]

    def step_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Step the schedules that watch a metric, after `epoch`.

        Raises:
            UsageError: if the metric is not logged, and the schedule is strict.
        """
        for config in self.watching(epoch):
            if config.monitor in metrics:
                config.scheduler.step(metrics[config.monitor])
            elif config.strict:
                raise not_logged(config, metrics, " in validation_step and pass its loader")

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the schedules, and the number of updates."""
        return {
            "last_epoch": self.last_epoch,
            "schedules": [config.scheduler.state_dict() for config in self._configs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.last_epoch = state["last_epoch"]
        for config, kept in zip(self._configs, state["schedules"], strict=True):
            config.scheduler.load_state_dict(kept)


def not_logged(config: Any, metrics: Mapping[str, Any], where: str = "") -> UsageError:
    """Return the error for a schedule whose metric is not among `metrics`."""
    return UsageError(
        f"{type(config.scheduler).__name__} watches {config.monitor!r}, which was not logged; the "
        f"metrics are: {', '.join(sorted(metrics)) or 'none'}. Log it{where}, or set "
        '"strict": False'
    )


def prepare(optimizer: Optimizer) -> None:
    """Let torch track the optimizer's steps, as any schedule made with it does."""
    LambdaLR(optimizer, lambda step: 1.0)


def adopt(optimizer: Optimizer, made: Optimizer, configs: Sequence[Any]) -> None:
    """Give `optimizer` the parameter groups of `made`, whose schedules then change `optimizer`.

    Both are results of the same `configure_optimizers`; the schedules of the second one know how
    many steps there are.
    """
    optimizer.param_groups = made.param_groups
    for config in configs:
        _attach(config.scheduler, optimizer)


def _attach(schedule: Any, optimizer: Optimizer) -> None:
    schedule.optimizer = optimizer
    for inner in getattr(schedule, "_schedulers", ()):
        _attach(inner, optimizer)
    warmup = getattr(schedule, "after_scheduler", None)
    if warmup is not None:
        _attach(warmup, optimizer)
