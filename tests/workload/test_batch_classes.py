"""Batches that are objects of a class of one's own."""

from __future__ import annotations

import dataclasses
from collections import UserDict, defaultdict
from typing import Any

import pytest
import torch

from rightbatch import UsageError, count_examples, split_batch
from rightbatch._workload.batch import batch_bytes, to_device

FIVE = torch.arange(15.0).reshape(5, 3)


class Graph:
    """A batch of one's own class: no mapping, no dataclass."""

    def __init__(self, x: torch.Tensor, label: torch.Tensor) -> None:
        self.x, self.label, self.name = x, label, "graph"


class Movable(Graph):
    def to(self, device: Any) -> Movable:
        moved = Movable(self.x.to(device), self.label.to(device))
        moved.name = "moved"
        return moved


@pytest.mark.parametrize("kind", [Graph, Movable])
def test_a_batch_of_ones_own_class_is_seen_into(kind: type[Graph]) -> None:
    batch = kind(FIVE, torch.arange(5))
    assert count_examples(batch) == 5
    assert batch_bytes(batch) == FIVE.nbytes + 5 * 8
    parts = split_batch(batch, 2)
    assert [type(part) for part in parts] == [kind] * 3
    assert torch.equal(torch.cat([part.x for part in parts]), FIVE)
    assert [part.label.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    moved = to_device({"batch": batch}, "meta")["batch"]
    assert (moved.x.device.type, batch.x.device.type) == ("meta", "cpu")
    assert moved.name == ("moved" if kind is Movable else "graph")


def test_objects_of_ones_own_class_that_share_no_dimension_raise_an_error() -> None:
    with pytest.raises(UsageError, match=r"\[2, 5\].*count="):
        count_examples(Graph(FIVE, torch.zeros(2, 9)))


def test_a_dataclass_with_a_field_of_its_own_is_kept() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sample:
        x: torch.Tensor
        total: float = dataclasses.field(init=False, default=0.5)

    parts = split_batch(Sample(FIVE), 3)
    assert [type(part) for part in parts] == [Sample, Sample]
    assert [part.total for part in parts] == [0.5, 0.5]


class Native:
    """A batch whose method has no signature, as those of C++ extensions."""

    def __init__(self) -> None:
        self.to = {"cpu": "moved"}.pop


def test_a_batch_of_an_extension_is_moved_without_further_arguments() -> None:
    assert to_device(Native(), "cpu") == "moved"


class Slotted:
    """As attrs makes them: without a `__dict__`."""

    __slots__ = ("__hidden", "image", "name")

    def __init__(self, image: torch.Tensor, name: str) -> None:
        self.image, self.name, self.__hidden = image, name, image + 1

    @property
    def hidden(self) -> torch.Tensor:
        return self.__hidden


def test_a_class_with_slots_is_counted_split_and_moved() -> None:
    batch = Slotted(torch.arange(5), "scans")
    assert count_examples(batch) == 5
    parts = split_batch(batch, 3)
    assert [part.image.tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert [part.hidden.tolist() for part in parts] == [[1, 2, 3], [4, 5]]
    assert {part.name for part in parts} == {"scans"}
    assert to_device(batch, "meta").image.is_meta and not batch.image.is_meta


class Table(dict[str, Any]):
    def __init__(self, name: str, columns: dict[str, Any]) -> None:
        super().__init__(columns)
        self.name = name


def test_parts_of_a_mapping_have_its_class_and_attributes() -> None:
    columns = {"image": torch.arange(5)}
    batches: tuple[Any, ...] = (
        Table("scans", columns),
        defaultdict(list, columns),
        UserDict(columns),
    )
    for batch in batches:
        first, last = split_batch(batch, 3)
        assert type(first) is type(batch)
        assert (first["image"].tolist(), last["image"].tolist()) == ([0, 1, 2], [3, 4])
        assert getattr(first, "name", "scans") == "scans"
        assert len(batch["image"]) == 5
    assert first.get("boxes") is None
