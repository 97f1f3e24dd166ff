"""What a Lightning module logs in a training: counted once, in parts as a whole, or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from rightbatch import _faults

pytest.importorskip("lightning")
import lightning_parts as parts
from framework_checks import train
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from rightbatch.integrations.lightning import ElasticBatches, workload
from rightbatch.integrations.lightning._logged import entry

pytestmark = pytest.mark.filterwarnings("ignore")


class Counting(parts.Module):
    """Logs a one for every part, and keeps the metrics that the trainer has at its end."""

    found: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("parts", 1.0, reduce_fx="sum")
        self.log("ends", 0.0, reduce_fx="sum")
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("ends", 1.0, reduce_fx="sum")

    def on_train_end(self) -> None:
        type(self).found = dict(self.trainer.callback_metrics)


def counted(folder: Path, **options: Any) -> dict[str, Any]:
    data = DataLoader(parts.data(64), batch_size=16, shuffle=True)
    train(lambda: workload(Counting(), data), folder, **options)
    found: dict[str, Any] = Counting.found
    return found


@pytest.mark.parametrize("micro_batch", [16, "auto"])
def test_probes_log_nothing(micro_batch: Any, tmp_path: Path) -> None:
    found = counted(tmp_path, micro_batch=micro_batch)
    assert found["parts"] == found["ends"] == 4


def test_a_failed_attempt_logs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter, failures = _faults.enter, iter([True])

    def fail_once(place: Any) -> None:
        enter(place)
        if place == "backward" and next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_faults, "enter", fail_once)
    found = counted(tmp_path)
    assert found["parts"] == 4 and next(failures, None) is None  # again at the same size
    assert found["ends"] == 4


def test_a_resumed_epoch_logs_all_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rightbatch.integrations.lightning._run import LightningRun

    end, steps = LightningRun.on_step_end, iter(range(3))

    def ending(self: Any, *arguments: Any) -> None:
        if next(steps, None) is None:
            raise RuntimeError("the power went")
        end(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(LightningRun, "on_step_end", ending)
        with pytest.raises(rb.WorkloadError, match="the power went"):
            counted(tmp_path, checkpoint_seconds=0)
    found = counted(tmp_path, checkpoint_seconds=0, resume=True)
    assert found["parts"] == found["ends"] == 4


class Measured(Counting):
    """Counts its examples with a metric that has a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.examples = SumMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.examples(len(batch[0]))
        self.log("examples", self.examples, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_a_metric_counts_no_probe_no_failed_attempt_and_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True])

    def fail_once(place: Any) -> None:
        if place == "backward" and next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_faults, "watchers", [fail_once])
    w = workload(Measured(), DataLoader(parts.data(64), batch_size=16, shuffle=True))
    end = w.callbacks.on_step_end  # type: ignore[union-attr]

    def ending(batch: Any, *more: Any) -> None:
        end(batch, *more)
        w.loss(w.model, batch)  # as the noise scale is measured

    w.callbacks.on_step_end = ending  # type: ignore[method-assign,union-attr]
    train(lambda: w, tmp_path, micro_batch="auto")
    assert Measured.found["examples"] == 64 and next(failures, None) is None


class Sums(Measured):
    """Logs what is the same for a batch in parts, in every way."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log_dict({"labels": batch[1].sum()}, reduce_fx="sum", on_epoch=True)
        self.log("largest", batch[0].max(), reduce_fx="max", batch_size=len(batch[0]))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("validated", float(len(batch[0])), reduce_fx="sum")


@pytest.mark.parametrize("micro_batch", ["auto", 10])
def test_elastic_batches_logs_what_lightning_logs(
    micro_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_twice(place: Any) -> None:
        if place in failures:
            failures.remove(place)
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_faults, "watchers", [fail_twice])
    found = []
    for callbacks in ([], [ElasticBatches(micro_batch_size=micro_batch)]):
        failures = ["backward", "evaluation"] if callbacks else []
        torch.manual_seed(0)
        data = DataLoader(parts.data(60), batch_size=16)
        trainer = parts.quiet_trainer(max_epochs=1, callbacks=callbacks)
        trainer.fit(Sums(), data, data)
        assert not failures
        found.append({key: float(value) for key, value in Sums.found.items() if key != "parts"})
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0]["examples"] == 60


class Masked(Counting):
    """Logs a mean over the labels that are 1, of which a batch may have none."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        counted = int((batch[1] == 1).sum())
        values = batch[0].sum(1)[batch[1] == 1]
        self.log("masked", values.sum() / max(counted, 1), batch_size=counted, on_epoch=True)
        self.log("nothing", 3.0, batch_size=0, on_epoch=True)
        self.log("zero", 0, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("ours", ["train", "elastic"])
def test_values_without_weight_are_logged_as_by_lightning(ours: str, tmp_path: Path) -> None:
    inputs = parts.data(48).tensors[0]
    labels = torch.tensor([1, 0, 0, 1] * 4 + [0] * 16 + [0, 1] * 8)  # none in the second batch
    data = DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=False)

    def lightning(*callbacks: Any) -> Any:
        parts.quiet_trainer(max_epochs=1, callbacks=list(callbacks)).fit(Masked(), data)
        return Masked.found

    expected = float(lightning()["masked"])
    assert torch.isnan(lightning()["nothing"])
    if ours == "elastic":
        found = lightning(ElasticBatches(micro_batch_size=3))
    else:
        train(lambda: workload(Masked(), data), tmp_path, micro_batch=3)
        found = Masked.found
    assert float(found["masked"]) == pytest.approx(expected, rel=1e-5)
    assert found["nothing"] != found["nothing"] and found["zero"] == 0


def test_a_logged_value_that_is_no_number_is_refused_by_its_name() -> None:
    assert entry("accuracy", np.float32(0.5), None, 2.0, "mean") == ("accuracy", 0.5, 2.0, "mean")
    for value, words in ((torch.zeros(3), r"shape \(3,\)"), ({"a": 1.0}, "dict"), ("x", "str")):
        with pytest.raises(rb.UsageError, match=f"'accuracy'.*{words}"):
            entry("accuracy", value, None, 1.0, "mean")
