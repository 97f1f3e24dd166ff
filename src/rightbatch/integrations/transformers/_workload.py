"""A Transformers `Trainer` as a `Workload`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from rightbatch._errors import UsageError
from rightbatch._workload.signature import accepts
from rightbatch._workload.workload import Workload
from rightbatch.integrations._loaders import COMMAND, loader_data
from rightbatch.integrations.transformers._batch import TrainerBatches, at_least_one, copied
from rightbatch.integrations.transformers._run import TrainerRun

_LOOPS = ("training_step", "_inner_training_loop", "train", "get_batch_samples")
"""Methods with which a trainer trains in a way of its own."""


def workload(trainer: Trainer, **fields: Any) -> Workload:
    """Return a trainer's model, data, collator, optimizer, schedule and clipping as a `Workload`.

    Call it in a factory, since every probe builds its own. The trainer's sampler decides on the
    examples and their order (`group_by_length`), its `compute_loss` on the loss. What `train` does
    to the model first is done: activation checkpointing, NEFTune, `torch_compile`. After an epoch
    the metrics are the evaluation loss and those of `compute_metrics`. Inference of an
    encoder-decoder is one pass with its labels; for `generate`, pass `predict=`. `fields` are other
    fields of `Workload`.

    Raises:
        UsageError: for what has no place in a `Workload`, such as FSDP, DeepSpeed, a
            `training_step` of one's own, or batches that the data makes itself.
    """
    owner: Any = trainer
    arguments = owner.args
    _refuse(owner)
    # Losses are scaled for the processes and GPUs that the trainer sees; the loop has its own.
    arguments.average_tokens_across_devices = False
    arguments._n_gpu = min(arguments.n_gpu, 1)
    _prepare_model(owner)
    data = loader_data(owner.get_train_dataloader())
    batches = TrainerBatches(owner)
    takes_items = accepts(owner.compute_loss, "num_items_in_batch", unknown=True)
    normalizes = owner.model_accepts_loss_kwargs or owner.compute_loss_func is not None

    def loss(model: nn.Module, batch: Any) -> Tensor:
        # With num_items_in_batch the loss is divided by the number of labels, as in the trainer.
        items = at_least_one(batches.items(batch)) if normalizes else None
        keywords = {"num_items_in_batch": items} if takes_items else {}
        loss: Tensor = owner.compute_loss(model, copied(batch), **keywords)
        return loss

    run = TrainerRun(owner)
    about: dict[str, Any] = {
        **data.fields(),
        "count": batches.count,
        "split": batches.split,
        "evaluation_data": run.evaluation_data(),
        "scheduler": run.schedule,
        "clip_norm": arguments.max_grad_norm or None,
        "drop_last": arguments.dataloader_drop_last,
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "callbacks": run,
    }
    if run.has_metrics:
        about["evaluate"] = run.evaluate
    if getattr(getattr(owner.model, "config", None), "is_encoder_decoder", False):
        about["predict"] = _teacher_forced
    optimizer = owner.create_optimizer()
    return Workload(owner.model, loss, optimizer, **about | fields)


def _teacher_forced(model: Any, batch: Any) -> Any:
    """Run an encoder-decoder, whose decoder's inputs are made from the labels."""
    return model(**batch)


def _refuse(owner: Any) -> None:
    if owner.is_deepspeed_enabled or owner.is_fsdp_enabled:
        raise UsageError(
            "a trainer with DeepSpeed or FSDP shards the model over its processes; describe it "
            f"without, {COMMAND}"
        )
    if owner.train_dataset is None:
        raise UsageError("the trainer has no train_dataset; pass one where it is made")
    own = [name for name in _LOOPS if _is_own(owner, name)]
    if own:
        raise UsageError(
            f"{type(owner).__name__} overrides {', '.join(own)}, which only its own loop calls: "
            f"override compute_loss instead, {COMMAND}"
        )
    if getattr(owner.args, "use_liger_kernel", False):
        raise UsageError(
            "use_liger_kernel replaces layers when the trainer starts; apply the kernels to the "
            f"model where it is made, {COMMAND}"
        )


def _is_own(owner: Any, name: str) -> bool:
    for kind in type(owner).__mro__:
        if name in vars(kind):
            return kind.__module__.partition(".")[0] not in ("transformers", "rightbatch")
    return False


def _prepare_model(owner: Any) -> None:
    """Do what `Trainer.train` does to the model before its first step."""
    arguments, model = owner.args, owner.model
    checkpoints = getattr(arguments, "activation_checkpointing", None)
    if checkpoints is None:
        checkpoints = getattr(arguments, "gradient_checkpointing", False)
    if checkpoints:
        _checkpoint_activations(arguments, model)
    if getattr(owner, "neftune_noise_alpha", None) is not None:
        from transformers.integrations.neftune import activate_neftune

        owner.neftune_hook_handle = activate_neftune(
            model, owner.neftune_noise_alpha, owner.accelerator
        )
    if arguments.torch_compile:
        model.compile(
            backend=arguments.torch_compile_backend or "inductor",
            mode=arguments.torch_compile_mode,
        )


def _checkpoint_activations(arguments: Any, model: Any) -> None:
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        enable = getattr(model, f"{name}_enable", None)
        if enable is None:
            continue
        own = dict(getattr(arguments, f"{name}_kwargs", None) or {})
        outer = {key: own.pop(key) for key in ("every_n_layers", "offload") if key in own}
        keywords = {k: value for k, value in outer.items() if accepts(enable, k, unknown=False)}
        enable(**{f"{name}_kwargs": own or None}, **keywords)
        return
    raise UsageError(
        f"{type(model).__name__} has no activation checkpointing; leave gradient_checkpointing out"
    )
