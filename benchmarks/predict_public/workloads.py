"""The steps of the measurements, as workloads."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

import rightbatch as rb
from benchmarks.predict_public.fine_tuning import fine_tuning
from benchmarks.predict_public.rows import Row
from rightbatch._predict.unfilled import Unfilled

CLASSES = 1000
EXAMPLES = 2**20


def factory_of(row: Row) -> Callable[[], rb.Workload]:
    """Return a factory of the row's step."""
    if row.kind == "peft":
        return functools.partial(fine_tuning, row.more)
    step = (row.model, row.image_size, row.layout, row.kind, row.fast_norm)
    return functools.partial(timm_step, *step)


def timm_step(
    name: str, image_size: int, layout: str, kind: str, fast_norm: bool = False
) -> rb.Workload:
    """Return the step of timm's benchmark.py: mixed precision by autocast, SGD with momentum.

    Training rows are of 2022: attention was not fused, and the optimizer looped over parameters.
    """
    import timm
    from timm.layers import set_fast_norm, set_fused_attn

    set_fused_attn(kind == "infer")
    set_fast_norm(fast_norm)
    model = timm_model(timm, name, image_size, kind)
    if layout == "nhwc":
        model = model.to(memory_format=torch.channels_last)
    return rb.Workload(
        model=model,
        loss=_loss,
        optimizer=KeepingGradients(
            model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, foreach=False
        ),
        data=Images(image_size),
        collate=_channels_last if layout == "nhwc" else default_collate,
        size=_same,
        predict=_forward if kind == "infer" else None,
        precision="fp16",
        name=name,
    )


def timm_model(timm: Any, name: str, image_size: int, kind: str) -> nn.Module:
    """Return the model; models of one input size are built for that of the row."""
    options: dict[str, Any] = {"num_classes": CLASSES} if kind == "train" else {}
    entry = timm.models.get_pretrained_cfg(name)
    if entry is not None and entry.fixed_input_size and entry.input_size[-1] != image_size:
        options["img_size"] = image_size
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


class Images(Dataset[tuple[Tensor, int]]):
    """Images of zeros."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, self.side, self.side), index % CLASSES


class KeepingGradients(torch.optim.SGD):
    """SGD that fills gradients with zeros, as PyTorch's default was before 2.0."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)


def _loss(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    output = model(x)
    output = output[0] if isinstance(output, tuple) else output
    return nn.functional.cross_entropy(output, y)


def _forward(model: nn.Module, batch: Any) -> Any:
    return model(batch[0])


def _channels_last(items: list[Any]) -> Any:
    x, y = default_collate(items)
    return [x.contiguous(memory_format=torch.channels_last), y]


def _same(index: int) -> int:
    return 1


@functools.cache
def family_of(row: Row) -> str:
    """Return `convolutional`, `attention`, `hybrid` or `other`, by the model's modules.

    A convolution whose stride is less than its kernel mixes neighbours (patch embeddings do not);
    more than two of them make a model convolutional. A module with attention calls the fused
    operator, or a softmax between two matrix products.
    """
    import timm

    with Unfilled():
        try:
            model = timm_model(timm, row.model, row.image_size, row.kind)
        except Exception:
            return "other"
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    mixing = sum(max(m.kernel_size) > max(m.stride) for m in convolutions)
    sources = {_source(type(m)) for m in model.modules()}
    attends = any(_ATTENTION.search(source) for source in sources)
    if mixing > 2:
        return "hybrid" if attends else "convolutional"
    return "attention" if attends else "other"


_ATTENTION = re.compile(r"scaled_dot_product_attention|@[^@]*softmax[^@]*@", re.DOTALL)


@functools.cache
def _source(kind: type) -> str:
    if kind.__module__.startswith("torch."):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
