"""Inference of a workload without `predict`: which part of a batch is the model's input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rightbatch import UsageError
from rightbatch._workload.forward import forward


class Taking(nn.Module):
    def forward(self, input_ids: Any, attention_mask: Any = None) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class TakingAny(nn.Module):
    def forward(self, **inputs: Any) -> dict[str, Any]:
        return inputs


BATCH = {"input_ids": torch.ones(2, 3), "example_id": ["a", "b"], "labels": torch.zeros(2)}


@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, nn.DataParallel])
def test_a_mapping_gives_what_forward_takes(wrap: Any) -> None:
    with torch.compiler.set_stance("force_eager"):
        found = forward(wrap(Taking()), BATCH)
    assert found["input_ids"] is BATCH["input_ids"]
    assert found["attention_mask"] is None


def test_a_mapping_gives_all_but_the_labels_where_forward_takes_any() -> None:
    assert set(forward(TakingAny(), BATCH)) == {"input_ids", "example_id"}


def test_a_forward_without_a_signature_gets_all_but_the_labels() -> None:
    class Native(nn.Module):
        forward = dict

    assert set(forward(Native(), BATCH)) == {"input_ids", "example_id"}


@pytest.mark.parametrize("batch", [torch.ones(2), (torch.ones(2), 3), [torch.ones(2)]])
def test_a_tensor_or_the_first_field_is_the_input(batch: Any) -> None:
    assert torch.equal(forward(nn.Identity(), batch), torch.ones(2))


def test_an_error_of_the_model_names_what_was_left_out_and_the_way_round() -> None:
    with pytest.raises(UsageError, match=r"without pixels, labels \(TypeError.*predict="):
        forward(Taking(), {"pixels": torch.ones(2), "labels": torch.ones(2)})


def test_out_of_memory_is_no_wrong_use() -> None:
    class Large(nn.Module):
        def forward(self, x: Any) -> Any:
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        forward(Large(), torch.ones(1))
