"""Limits of a Lightning trainer: batches of training and validation data, or refused."""

from __future__ import annotations

from typing import Any

import pytest

import rightbatch as rb

pytest.importorskip("lightning")
import lightning_parts as parts
from kinds_lightning_data import Stream, TwoValidations
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from rightbatch.integrations.lightning import workload

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("limits", [{"limit_train_batches": 1}, {"fast_dev_run": True}])
def test_a_limit_of_one_batch_is_one_batch(limits: dict[str, Any]) -> None:
    order = workload(parts.Module(), parts.loader(), trainer=parts.quiet_trainer(**limits)).order
    assert order is not None and len(order(0, 0)) == 8


def test_a_limit_counts_the_batches_of_a_batch_sampler() -> None:
    batches = BatchSampler(RandomSampler(parts.data()), 8, drop_last=False)
    loader = DataLoader(parts.data(), batch_sampler=batches)
    trainer = parts.quiet_trainer(limit_train_batches=5)
    order = workload(parts.Module(), loader, trainer=trainer).order
    assert order is not None and len(order(0, 0)) == 40


@pytest.mark.parametrize(
    ("limit", "make", "words"),
    [
        (5, lambda: DataLoader(Stream(), batch_size=8), "an IterableDataset has none"),
        (0.0, parts.loader, "leaves no batch"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(limit: Any, make: Any, words: str) -> None:
    with pytest.raises(rb.UsageError, match=f"limit_train_batches={limit} .*{words}"):
        workload(parts.Module(), make(), trainer=parts.quiet_trainer(limit_train_batches=limit))


def test_a_share_is_of_whole_batches_and_not_of_less_than_one() -> None:
    def limited(limit: float) -> Any:
        return workload(
            parts.Module(),
            DataLoader(parts.data(50), batch_size=8),  # 7 batches
            trainer=parts.quiet_trainer(limit_train_batches=limit),
        ).order

    assert len(limited(0.5)(0, 0)) == 24
    with pytest.raises(rb.UsageError, match="leaves no batch of 7"):
        limited(0.1)(0, 0)


def test_the_validation_has_the_batches_that_its_limit_leaves() -> None:
    def limited(limit: Any) -> Any:
        loaders = [DataLoader(parts.data(50), batch_size=8), DataLoader(parts.data(30), 4)]
        trainer = parts.quiet_trainer(limit_val_batches=limit)
        return workload(TwoValidations(), parts.loader(), loaders, trainer=trainer)

    for limit, first, second in ((2, 16, 8), (0.5, 24, 16), (1.0, 50, 30), (7, 50, 28)):
        w = limited(limit)
        assert len(w.evaluation_data) == first
        (other,) = w.callbacks._others
        assert sum(len(batch[0]) for batch in other) == second
    assert limited(0).evaluation_data is None
    with pytest.raises(rb.UsageError, match=r"limit_val_batches=0.1 leaves no batch of 7"):
        limited(0.1)


@pytest.mark.parametrize(("limit", "examples"), [(1.0, 48), (0.5, 24), (7, 48), (2, 16)])
def test_batches_that_a_loader_drops_are_in_no_limit(limit: Any, examples: int) -> None:
    trainer = parts.quiet_trainer(limit_val_batches=limit, limit_train_batches=limit)
    dropping = DataLoader(parts.data(50), batch_size=8, drop_last=True)  # 6 batches
    w = workload(parts.Module(), dropping, dropping, trainer=trainer)
    assert w.evaluation_data is not None and len(w.evaluation_data) == examples
    assert w.drop_last and w.order is not None
    assert limit == 1.0 or len(w.order(0, 0)) == examples


def test_a_loader_that_drops_its_only_batch_is_refused() -> None:
    dropping = DataLoader(parts.data(5), batch_size=8, drop_last=True)
    with pytest.raises(rb.UsageError, match="drop_last=True and 5 examples"):
        workload(parts.Module(), parts.loader(), dropping)
    trainer = parts.quiet_trainer(limit_train_batches=2)
    order = workload(parts.Module(), dropping, trainer=trainer).order
    with pytest.raises(rb.UsageError, match="drop_last=True and 5 examples"):
        order and order(0, 0)


def test_a_share_of_a_second_validation_stream_is_refused_and_a_number_is_kept() -> None:
    def limited(limit: Any) -> Any:
        loaders = [parts.loader(), DataLoader(Stream(), batch_size=8)]
        trainer = parts.quiet_trainer(limit_val_batches=limit)
        return workload(TwoValidations(), parts.loader(), loaders, trainer=trainer)

    with pytest.raises(rb.UsageError, match=r"limit_val_batches=0.5 .*dataloader_idx 1 .*Stream"):
        limited(0.5)
    assert len(list(limited(2).callbacks._others[0])) == 2
