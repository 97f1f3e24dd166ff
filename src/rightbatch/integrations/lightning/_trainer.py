"""What a LightningModule may ask its trainer for, in a training that is not Lightning's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from rightbatch._errors import UsageError
from rightbatch.integrations._loaders import COMMAND
from rightbatch.integrations.lightning._hooks import base_of

_NONE = frozenset(
    {
        "progress_bar_callback",
        "checkpoint_callback",
        "early_stopping_callback",
        "ckpt_path",
        "max_time",
        "profiler",
    }
)
_FALSE = frozenset({"sanity_checking", "testing", "predicting", "fast_dev_run", "barebones"})


class _NoAttribute(UsageError, AttributeError):
    """The stand-in lacks an attribute; as an AttributeError it answers `hasattr`."""


class TrainerStandIn:
    """The attributes of a `Trainer` that a module reads: counts, data, schedules.

    `estimated_stepping_batches` and `max_epochs` are those of the training that runs; in a probe,
    of one epoch over the loader. The logger discards what the module writes to it itself, as
    Lightning's does with `fast_dev_run`; there is none where `trainer` has none.

    Raises:
        UsageError: for any other attribute; it is an AttributeError, too.
    """

    def __init__(
        self, module: Any, *, datamodule: Any, train_dataloader: Any, trainer: Any = None
    ) -> None:
        self._module = module
        self.datamodule = datamodule
        self.train_dataloader = train_dataloader
        self.val_dataloaders: Any = None
        self.current_epoch = 0
        self.global_step = 0
        self.batch_index = 0
        self.max_epochs = 1
        self.max_steps = -1
        self.world_size = 1
        self.accumulate_grad_batches = 1
        self.should_stop = False
        self.num_training_batches: float = _length(train_dataloader)
        self.estimated_stepping_batches: float = self.num_training_batches
        self.callback_metrics: dict[str, Any] = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.lr_scheduler_configs: Sequence[Any] = ()
        self.global_rank = self.local_rank = self.node_rank = 0
        self.num_nodes = self.num_devices = 1
        self.callbacks: list[Any] = []
        self.log_every_n_steps = getattr(trainer, "log_every_n_steps", 50)
        has_logger = trainer is None or bool(trainer.loggers)
        self.logger = _discarding_logger(module) if has_logger else None
        self.loggers: list[Any] = [self.logger] if has_logger else []

    @property
    def lightning_module(self) -> Any:
        return self._module

    @property
    def model(self) -> Any:
        return self._module

    @property
    def is_global_zero(self) -> bool:
        return self.global_rank == 0

    @property
    def is_last_batch(self) -> bool:
        """Whether the step is the epoch's last."""
        return self.batch_index + 1 >= self.num_training_batches

    @property
    def training(self) -> bool:
        return bool(self._module.training)

    @property
    def validating(self) -> bool:
        return not self.training

    @property
    def evaluating(self) -> bool:
        return not self.training

    @property
    def logged_metrics(self) -> dict[str, Any]:
        return self.callback_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, Any]:
        return self.callback_metrics

    @property
    def strategy(self) -> Any:
        """Collectives of one process.

        Raises:
            UsageError: in several processes.
        """
        if self.world_size > 1:
            raise UsageError(
                "the module communicates with other processes through its trainer, which "
                "`torchrun -m rightbatch` does not support; train in one process, or with Lightning"
            )
        return SimpleNamespace(
            root_device=self._module.device,
            barrier=lambda *_, **__: None,
            broadcast=lambda value, *_, **__: value,
            reduce=lambda value, *_, **__: value,
            all_gather=lambda value, *_, **__: value,
            _lightning_optimizers=self.optimizers,
        )

    def __getattr__(self, name: str) -> Any:
        if name in _NONE:
            return None
        if name in _FALSE:
            return False
        if name.startswith("_"):
            raise AttributeError(name)
        raise _NoAttribute(
            f"the module asks its trainer for {name!r}, which only Lightning's own trainer has: "
            f"pass the value to the module, {COMMAND}"
        )


def _discarding_logger(module: Any) -> Any:
    package = base_of(module).__module__.removesuffix(".core.module")
    base = import_module(f"{package}.loggers.logger").DummyLogger
    folders = {name: property(_no_folder) for name in ("log_dir", "save_dir", "root_dir")}
    return type("DiscardingLogger", (base,), folders)()


def _no_folder(logger: Any) -> str:
    raise UsageError(
        "the module asks its logger for a folder, which only that of Lightning's own trainer has: "
        f"give the module a folder of its own, {COMMAND}"
    )


def _length(loader: Any) -> float:
    try:
        return len(loader)
    except TypeError:
        return float("inf")
