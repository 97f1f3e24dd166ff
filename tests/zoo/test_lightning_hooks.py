"""What a Lightning module asks of its training: batches in its own order, a loss, a trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import rightbatch as rb
from rightbatch._training.distributed import Processes
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import LoopPlan
from rightbatch._training.resolve import resolve

pytest.importorskip("lightning")
import kinds_lightning as kinds
import lightning_parts as parts
from framework_checks import train

from rightbatch.integrations._loaders import loader_data
from rightbatch.integrations.lightning import workload
from rightbatch.integrations.lightning._validation import validation_data

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = Processes(torch.device("cpu"))


class Indexed(parts.Module):
    """Keeps the indices that its validation gets, and what was validated."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[int] = []
        self.begun = 0

    def on_validation_start(self) -> None:
        self.begun += 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.indices.append(batch_idx)
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))
        self.log("validated", float(len(batch[0])), reduce_fx="sum")


def test_a_validation_counts_its_own_batches(tmp_path: Path) -> None:
    module = Indexed()
    train(lambda: workload(module, parts.loader(), parts.loader()), tmp_path, epochs=2)
    assert module.indices == [0, 1, 2] * 2


def test_a_loss_without_gradients_from_elsewhere_is_in_no_validation(tmp_path: Path) -> None:
    module = Indexed()
    w = workload(module, parts.loader(), parts.loader())
    start = w.callbacks.on_step_start  # type: ignore[union-attr]

    def starting(batch: Any, index: int) -> None:
        with torch.no_grad():
            w.loss(w.model, batch)
        start(batch, index)

    w.callbacks.on_step_start = starting  # type: ignore[method-assign,union-attr]
    assert train(lambda: w, tmp_path).metrics["validated"] == parts.EXAMPLES


class Failing(Indexed):
    """Fails once at the end of its validation."""

    error: Exception | None = torch.OutOfMemoryError("CUDA out of memory")

    def on_validation_epoch_end(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


def test_an_evaluation_that_is_repeated_counts_its_examples_once(tmp_path: Path) -> None:
    module = Failing()
    loaders = [parts.loader(), parts.loader(shuffle=False, batch_size=12)]

    def validation_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        Indexed.validation_step(module, batch, batch_idx)

    module.validation_step = validation_step  # type: ignore[assignment]
    result = train(lambda: workload(module, parts.loader(), loaders), tmp_path)
    assert result.metrics["validated/dataloader_idx_0"] == parts.EXAMPLES
    assert result.metrics["validated/dataloader_idx_1"] == parts.EXAMPLES
    assert module.begun == 1 and module.indices == [0, 1, 2, *[0, 1, 2, 3] * 2]


def test_a_validation_begins_again_after_one_that_failed() -> None:
    module = Failing()
    module.error = ValueError("of the module")
    w = workload(module, parts.loader(), parts.loader())
    loop = WorkloadLoop(w, LoopPlan(batch_size=16, micro_batch_size=16, epochs=1), CPU)
    with pytest.raises(ValueError, match="of the module"):
        loop.evaluate()
    assert loop.evaluate()["validated"] == parts.EXAMPLES
    assert module.begun == 2 and module.indices == [0, 1, 2] * 2


@pytest.mark.parametrize(
    "make", [lambda: {"one": parts.loader()}, lambda: [parts.loader(), {"two": parts.loader()}]]
)
def test_validation_loaders_in_a_dictionary_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(rb.UsageError, match="several loaders in one"):
        validation_data(make(), loader_data(parts.loader()))


class NoLoss(parts.Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"out": self(batch[0])}


def test_a_dictionary_without_a_loss_is_refused() -> None:
    session = resolve(lambda: workload(NoLoss(), parts.loader())).session(
        "cpu", seed=0, inference=False
    )
    with pytest.raises(rb.UsageError, match="returned no loss"):
        session.step(2)


class Asking(parts.Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if hasattr(self.trainer, "fit_loop"):
            raise AssertionError("the stand-in has no fit_loop")
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


def test_a_module_may_ask_whether_its_trainer_has_an_attribute(tmp_path: Path) -> None:
    assert train(lambda: workload(Asking(), parts.loader()), tmp_path).steps == 3


def test_an_attribute_that_a_trainer_lacks_is_refused_by_name_over_a_process() -> None:
    spec = f"{kinds.__file__}:asks_for_the_fit_loop"
    with pytest.raises(rb.UsageError, match="'fit_loop'"):
        rb.fit(spec, max_batch=4, memory="1GiB", device="cpu", progress=False)
