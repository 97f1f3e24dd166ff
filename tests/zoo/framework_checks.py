"""What the trainings of every framework are held to, by the modules of their kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rightbatch as rb
from rightbatch._predict.follow import Follower
from rightbatch._predict.variant import Variant
from rightbatch._training.resolve import resolve

SIZES = (2, 5)


def check_steps(kinds: Any, name: str) -> None:
    """Steps of any size train, and evaluate; or the kind is refused by name."""
    training = resolve(kinds.KINDS[name])
    if name in kinds.REFUSED:
        with pytest.raises(rb.UsageError, match=kinds.REFUSED[name]):
            training.session("cpu", seed=0, inference=False).step(3)
        return
    session = training.session("cpu", seed=0, inference=False)
    before = [p.detach().clone() for p in _trained(session)]
    for size in SIZES:
        session.step(size)
        assert session.evaluate(size) == size
    assert any(not torch.equal(a, b) for a, b in zip(before, _trained(session), strict=True))
    session.close()
    inference = training.session("cpu", seed=0, inference=True)
    assert inference.evaluate(3) == 3
    inference.close()


def check_training(kinds: Any, name: str, train: Callable[..., rb.TrainResult]) -> None:
    """`train(factory)` ends with numbers; or the kind is refused by name."""
    refusal = {**kinds.REFUSED, **kinds.TRAIN_REFUSED}.get(name)
    if refusal is not None:
        with pytest.raises(rb.UsageError, match=refusal):
            train(kinds.KINDS[name])
        return
    result = train(kinds.KINDS[name])
    assert result.steps
    assert not any(map(math.isnan, result.metrics.values())), result.metrics


def check_followed(kinds: Any, name: str) -> None:
    """Its step is followed without its memory, which grows with the batch."""
    follower = Follower(kinds.KINDS[name])
    assert follower.trace(4, Variant()).peak_bytes > follower.trace(2, Variant()).peak_bytes
    assert follower.how == "fake"


def check_fit(module: Any, name: str, most: int) -> None:
    """`fit` takes the name of a function in a file, and finds that `most` examples fit."""
    spec = f"{module.__file__}:{name}"
    found = rb.fit(spec, max_batch=most, memory="1GiB", device="cpu", progress=False)
    assert found.batch_size == most


def train(factory: Callable[[], Any], folder: Path, **options: Any) -> rb.TrainResult:
    """Train on the CPU into `folder`/run; by default one epoch in batches of 16."""
    defaults = {"batch": 16, "micro_batch": 16, "epochs": 1, "device": "cpu", "progress": False}
    return rb.train(factory, out=folder / "run", **defaults | options)


def weights(folder: Path) -> list[Tensor]:
    """The weights that a training has left in `folder`/run."""
    return list(torch.load(folder / "run" / "model.pt").values())


def _trained(session: Any) -> list[Tensor]:
    return [p for p in session.modules()[0].parameters() if p.requires_grad]
