"""A LightningModule and its data as a `Workload`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch.nn.parameter import is_lazy

from rightbatch._errors import UsageError
from rightbatch._workload.workload import Workload
from rightbatch.integrations._loaders import COMMAND, LoaderData, loader_data
from rightbatch.integrations.lightning._hooks import base_of, is_data_module, overrides
from rightbatch.integrations.lightning._run import LightningRun
from rightbatch.integrations.lightning._schedules import configured, prepare
from rightbatch.integrations.lightning._settings import trainer_fields
from rightbatch.integrations.lightning._trainer import TrainerStandIn
from rightbatch.integrations.lightning._validation import validation_data


def workload(
    module: Any,
    loader: Any = None,
    validation: Any = None,
    *,
    trainer: Any = None,
    **fields: Any,
) -> Workload:
    """Return a LightningModule and its data as a `Workload`; call it in a factory.

    The loss is that of `training_step`, the optimizer and the schedules those of
    `configure_optimizers`, whose `self.trainer.estimated_stepping_batches` are those of the
    training that runs. With `validation`, `validation_step` evaluates, and what it logs are the
    metrics. Hooks of module and data module around fit, epochs, batches and transfers are called.

    `loader` is a `DataLoader`, or a `LightningDataModule`; without it, those of the module are
    used. Its sampler decides on the examples and their order, its batch size is ignored. `trainer`
    is a `Trainer` whose precision, gradient clipping and limits of batches are used. `fields`
    are other fields of `Workload` (`precision=`, `evaluate=`, `scheduler=`).

    Raises:
        UsageError: for manual optimization, several optimizers or training loaders, and what else
            has no place in a `Workload`; the message has the way round.
    """
    module = _uncompiled(module)
    package = base_of(module).__module__.removesuffix(".core.module")
    if not module.automatic_optimization:
        raise UsageError(
            "the module uses manual optimization (automatic_optimization=False); describe its step "
            f"as a rightbatch.Workload, {COMMAND}"
        )
    loader, validation, owner = _loaders(module, loader, validation)
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if isinstance(loader, Mapping | list | tuple) or type(loader).__name__ == "CombinedLoader":
        raise UsageError(
            "the training has several loaders, whose batch sizes cannot be varied together: make "
            f"one Dataset whose items have an entry of each, {COMMAND}"
        )
    data = loader_data(loader)
    stand_in = TrainerStandIn(module, datamodule=owner, train_dataloader=loader, trainer=trainer)
    module.trainer = stand_in
    if owner is not None:
        owner.trainer = stand_in
    about = data.fields()
    if trainer is not None:
        about |= trainer_fields(trainer, data)
    limit = getattr(trainer, "limit_val_batches", None)
    validation = None if limit == 0 else validation
    evaluation = validation_data(validation, data, limit)
    about |= {"collate": evaluation.collate, "evaluation_data": evaluation.data}
    run = LightningRun(module, stand_in, owner, evaluation.others, trainer)
    if overrides(module, "configure_model"):
        module.configure_model()
    if any(is_lazy(parameter) for parameter in module.parameters()):
        run.materialize(data.collate(_first(data)))
    optimizer, schedules = configured(module, package)
    stand_in.optimizers = [optimizer]
    if schedules:
        prepare(optimizer)
        run.configure = lambda: configured(module, package)
        about["scheduler"] = run.schedule
    if validation is not None and overrides(module, "validation_step"):
        run.validates = True
        about["evaluate"] = run.evaluate
        if (own := fields.get("evaluate")) is not None:
            fields["evaluate"] = _both(run.evaluate, own)
    if overrides(module, "predict_step") and not overrides(module, "forward"):
        about["predict"] = run.predict
    about["callbacks"] = run
    return Workload(module, run.loss, optimizer, **about | fields)


def _uncompiled(module: Any) -> Any:
    """Return a module that was passed to `torch.compile`, with its compiled steps."""
    inner = getattr(module, "_orig_mod", None)
    if inner is None:
        return module
    package = base_of(inner).__module__.removesuffix(".core.module")
    return import_module(f"{package}.utilities.compile").from_compiled(module)


def _loaders(module: Any, loader: Any, validation: Any) -> tuple[Any, Any, Any]:
    """Return the training loader, the validation loaders and the data module, after their setup."""
    owner = loader if is_data_module(loader) else None
    for each in (owner, module):
        if each is not None and overrides(each, "prepare_data"):
            each.prepare_data()
    for each in (owner, module):
        if each is not None and overrides(each, "setup"):
            each.setup("fit")
    source = owner if owner is not None else module
    if loader is owner:  # also None, with the module's own loaders
        if not overrides(source, "train_dataloader"):
            raise UsageError(
                f"{type(source).__name__} has no train_dataloader; pass a DataLoader, or a "
                "LightningDataModule that has one"
            )
        loader = source.train_dataloader()
        if validation is None and overrides(source, "val_dataloader"):
            validation = source.val_dataloader()
    if isinstance(validation, list | tuple) and not validation:
        validation = None
    return loader, validation, owner


def _first(data: LoaderData) -> list[Any]:
    """Return two examples, for one forward pass."""
    if hasattr(data.data, "__getitem__"):
        return [data.data[index] for index in range(min(2, len(data.data)))]
    items = iter(data.data)
    return [next(items), next(items)]


def _both(
    first: Callable[[Any], Mapping[str, float]], second: Callable[[Any], Mapping[str, float]]
) -> Callable[[Any], dict[str, float]]:
    return lambda model: {**first(model), **second(model)}
