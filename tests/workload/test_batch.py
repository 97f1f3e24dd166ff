"""Batches of many structures: counting, splitting, moving and reassembling."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.utils.data import default_collate

from rightbatch import UsageError, count_examples, split_batch
from rightbatch._workload.batch import batch_bytes, map_tensors, tensors, to_device


class Pair(NamedTuple):
    image: Any
    label: Any


@dataclasses.dataclass
class Record:
    image: Any
    name: Any = ""


class Encoding(UserDict[str, Any]):
    """Like transformers' BatchEncoding: a mapping that is not a dict, constructed from one."""


class Keyed(Mapping[str, Any]):
    """A mapping that cannot be made from a dict alone."""

    def __init__(self, *, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def __iter__(self) -> Any:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


def numbered(batch_size: int, *shape: int) -> torch.Tensor:
    """Return a tensor of distinct elements."""
    return torch.arange(batch_size * torch.Size(shape).numel()).reshape(batch_size, *shape)


def detection(*objects: int, side: int = 4) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Collate like torchvision's detection references: one image and target per example."""
    images = [torch.full((3, side + i, side), float(i)) for i in range(len(objects))]
    targets = [
        {"boxes": torch.full((n, 4), float(i)), "labels": torch.full((n,), i)}
        for i, n in enumerate(objects)
    ]
    return images, targets


FIVE = numbered(5, 3, 2)


@pytest.mark.parametrize(
    "batch",
    [
        FIVE,
        (FIVE, torch.zeros(5)),
        [FIVE, torch.zeros(5, dtype=torch.long)],
        {"image": FIVE, "label": torch.zeros(5), "epoch": 3, "scale": torch.tensor(0.5)},
        Pair(FIVE, torch.zeros(5)),
        Record(FIVE),
        Encoding({"input_ids": FIVE, "attention_mask": torch.ones(5, 3)}),
        Keyed(fields={"x": FIVE}),
        (FIVE, {"boxes": torch.zeros(5, 4), "more": [torch.zeros(5), None]}),
        default_collate([(torch.zeros(3), f"name {i}", {"id": i, "at": 0.5}) for i in range(5)]),
        detection(1, 2, 0, 7, 2),
        (torch.zeros(5, 3, 8, 8), detection(1, 2, 0, 7, 2)[1]),
        {"images": detection(2, 1, 1, 1, 1)[0], "targets": detection(2, 1, 1, 1, 1)[1]},
    ],
)
def test_examples_are_counted(batch: Any) -> None:
    assert count_examples(batch) == 5


@pytest.mark.parametrize(
    "batch",
    [
        None,
        3,
        "text",
        {},
        (),
        torch.tensor(1.0),
        {"scale": torch.tensor(1.0)},
        (torch.zeros(4), torch.zeros(5)),
        [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(3, 4)}],
        ["a", "b"],
        object(),
    ],
)
def test_an_ambiguous_batch_raises_an_error_that_names_count_and_split(batch: Any) -> None:
    with pytest.raises(UsageError, match=r"count=.*split=") as caught:
        count_examples(batch)
    assert type(batch).__name__ in str(caught.value)
    with pytest.raises(UsageError, match=r"count=.*split="):
        split_batch(batch, 2)


def test_a_tensor_without_examples_raises_an_error_that_names_split() -> None:
    images, targets = detection(1, 2, 3, 4)
    with pytest.raises(UsageError, match=r"\(9,\) in a batch of 4 examples.*split="):
        split_batch((images, targets, {"anchors": torch.zeros(9)}), 2)


@pytest.mark.parametrize("order", [(3, 1, 4), (4, 3, 3)])
def test_a_packed_sequence_is_counted_and_cut_by_its_sequences(order: tuple[int, ...]) -> None:
    sequences = [torch.full((length,), float(i)) for i, length in enumerate(order)]
    packed = pack_sequence(sequences, enforce_sorted=sorted(order) == [*order][::-1])
    batch = {"text": packed, "label": torch.arange(len(order))}

    assert count_examples(batch) == len(order)
    parts = split_batch(batch, 2)

    cut = [sequence for part in parts for sequence in unpack_sequence(part["text"])]
    assert [part["label"].tolist() for part in parts] == [[0, 1], [2]]
    assert all(torch.equal(one, other) for one, other in zip(cut, sequences, strict=True))


def test_a_packed_sequence_beside_labels_of_another_number_raises_an_error() -> None:
    packed = pack_sequence([torch.zeros(3), torch.zeros(1)])
    with pytest.raises(UsageError, match=r"\[2, 4\].*count="):
        count_examples((packed, torch.zeros(4)))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (torch.sparse_coo, 14 * 4 + 2 * 14 * 8),
        (torch.sparse_csr, 14 * 4 + 14 * 8 + 6 * 8),
        (torch.sparse_csc, 14 * 4 + 14 * 8 + 4 * 8),
    ],
)
def test_a_sparse_matrix_is_cut_by_its_rows(layout: torch.layout, size: int) -> None:
    rows = numbered(5, 3).float()  # the first of 15 values is 0
    batch = (rows.to_sparse(layout=layout), torch.zeros(5))
    parts = split_batch(batch, 2)
    assert [part[0].layout for part in parts] == [layout] * 3
    assert torch.equal(torch.cat([part[0].to_dense() for part in parts]), rows)
    assert batch_bytes(batch[0]) == size


def test_a_nested_tensor_is_cut_by_its_sequences() -> None:
    sequences = [torch.full((length, 2), float(length)) for length in (3, 1, 4)]
    batch = [torch.nested.nested_tensor(sequences, layout=torch.jagged), torch.zeros(3)]
    assert count_examples(batch) == 3
    parts = split_batch(batch, 2)
    cut = [sequence for part in parts for sequence in part[0].unbind()]
    assert all(torch.equal(one, other) for one, other in zip(cut, sequences, strict=True))
    assert batch_bytes(batch[0]) == 8 * 2 * 4


@pytest.mark.parametrize("objects", [(3, 3, 3), (3,), (1, 1), (3, 3, 3, 3, 3)])
def test_images_and_targets_are_counted_where_their_own_dimensions_agree(
    objects: tuple[int, ...],
) -> None:
    """As many objects as channels: 3, and no other number in the tensors' first dimensions."""
    images, targets = detection(*objects)
    for batch in ((images, targets), {"image": images, "target": targets}):
        assert count_examples(batch) == len(objects)
        parts = split_batch(batch, 1)
        assert len(parts) == len(objects)
        assert {
            len(part[key])
            for part in parts
            for key in (batch if isinstance(batch, dict) else (0, 1))
        } == {1}


@pytest.mark.parametrize(
    "batch",
    [
        detection(3, 3, 3, 3)[0],
        detection(3, 3)[0],
        detection(3, 3)[1],
    ],
)
def test_a_list_of_whole_examples_is_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match=r"whole examples.*count=len.*split=lambda"):
        count_examples(batch)


def test_lists_of_inputs_are_no_lists_of_examples() -> None:
    """A model with two inputs of three dimensions each, in a batch of three."""
    inputs = [numbered(3, 4, 2), numbered(3, 4, 2)]
    assert count_examples((inputs, torch.zeros(3))) == 3
    assert count_examples({"x": inputs, "y": [torch.zeros(3), torch.zeros(3)]}) == 3
    assert [len(part[0][1]) for part in split_batch((inputs, torch.zeros(3)), 2)] == [2, 1]


def test_a_packed_sequence_is_moved_and_measured() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    moved = to_device({"x": packed}, "cpu")["x"]
    assert torch.equal(moved.data, packed.data)
    assert moved.data.dtype == packed.data.dtype
    assert batch_bytes(packed) == packed.data.nbytes + packed.batch_sizes.nbytes


@pytest.mark.parametrize("n", [0, -1])
def test_parts_have_at_least_one_example(n: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        split_batch(FIVE, n)


# Batches of a known number of examples, and how their parts are put together again.


@dataclasses.dataclass(frozen=True)
class PerExample:
    """Marks a list with one element per example in a drawn batch."""

    elements: list[Any]


def fields(batch_size: int) -> st.SearchStrategy[Any]:
    shapes = st.lists(st.integers(0, 3), max_size=2).map(tuple)
    leaves = st.one_of(
        shapes.map(lambda shape: numbered(batch_size, *shape)),
        st.just(torch.tensor(2.5)),
        st.just(None),
        st.text("ab", max_size=3),
        st.integers(),
        st.lists(st.text("ab", max_size=3), min_size=batch_size, max_size=batch_size).map(
            PerExample
        ),
    )
    named = st.sampled_from([dict, Encoding])

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        # A list inside a batch that happens to be as long as the batch is ambiguous by nature.
        sequences = st.lists(inner, max_size=4).filter(lambda found: len(found) != batch_size)
        return st.one_of(
            sequences,
            sequences.map(tuple),
            st.builds(Pair, inner, inner),
            st.builds(Record, inner, inner),
            st.builds(
                lambda kind, content: kind(content),
                named,
                st.dictionaries(st.sampled_from("xyz"), inner),
            ),
        )

    return st.recursive(leaves, nested, max_leaves=6)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Any]:
    """A batch of two and more fields, of which one is a tensor; as long as it is wide, at times."""
    batch_size = draw(st.integers(1, 6))
    rest = draw(st.lists(fields(batch_size), min_size=1, max_size=4))
    parts = [numbered(batch_size, 2), *rest]
    kind = draw(st.sampled_from(["list", "tuple", "dict", "named", "dataclass", "encoding"]))
    made: dict[str, Any] = {
        "list": parts,
        "tuple": tuple(parts),
        "dict": {str(i): part for i, part in enumerate(parts)},
        "encoding": Encoding({str(i): part for i, part in enumerate(parts)}),
        "named": Pair(*parts[:2]),
        "dataclass": Record(*parts[:2]),
    }
    return batch_size, made[kind]


def plain(marked: Any) -> Any:
    """Return the batch without the marks."""
    if isinstance(marked, PerExample):
        return list(marked.elements)
    return rebuilt(marked, plain)


def rebuilt(value: Any, function: Any) -> Any:
    if isinstance(value, Pair):
        return Pair(*map(function, value))
    if isinstance(value, list | tuple):
        return type(value)(map(function, value))
    if isinstance(value, Mapping):
        return type(value)({k: function(v) for k, v in value.items()})  # type: ignore[call-arg]
    if isinstance(value, Record):
        return Record(function(value.image), function(value.name))
    return value


def inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, Record):
        return [value.image, value.name]
    return list(value) if isinstance(value, list | tuple) else []


def check_parts(marked: Any, whole: Any, parts: list[Any]) -> None:
    """The parts together are the whole, field by field; no part has a tensor of its own."""
    if isinstance(marked, PerExample):
        assert list(chain.from_iterable(parts)) == whole
    elif isinstance(whole, torch.Tensor) and whole.ndim:
        assert torch.equal(torch.cat(parts), whole)
        storage = whole.untyped_storage()._cdata
        assert all(part.untyped_storage()._cdata == storage for part in parts)
    elif inner(whole):
        assert all(type(part) is type(whole) for part in parts)
        for i, field in enumerate(inner(whole)):
            check_parts(inner(marked)[i], field, [inner(part)[i] for part in parts])
    else:
        assert all(part is whole or part == whole for part in parts)


@given(batches(), st.integers(1, 7))
def test_the_parts_are_views_that_together_are_the_batch(drawn: tuple[int, Any], n: int) -> None:
    batch_size, marked = drawn
    batch = plain(marked)
    assert count_examples(batch) == batch_size

    parts = split_batch(batch, n)

    assert len(parts) == -(-batch_size // n)
    assert [count_examples(part) for part in parts[:-1]] == [n] * (len(parts) - 1)
    check_parts(marked, batch, list(parts))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(lambda n: len(set(n)) > 1))
def test_detection_batches_are_cut_by_image_however_many_objects_and_channels(
    objects: list[int],
) -> None:
    images, targets = detection(*objects)
    # Where sizes differ too, nothing but the lists says how many examples there are.
    for batch, order in [((images, targets), (0, 1)), ([targets, images], (1, 0))]:
        assert count_examples(batch) == len(objects)
        parts = split_batch(batch, 2)
        assert [image for part in parts for image in part[order[0]]] == images
        assert [target for part in parts for target in part[order[1]]] == targets
        assert all(len(part[0]) == len(part[1]) <= 2 for part in parts)


@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_what_default_collate_makes_is_cut_into_what_it_would_have_made(batch_size: int) -> None:
    Item = namedtuple("Item", "x y")
    items: list[list[Any]] = [
        [(torch.full((3,), i), f"name {i}") for i in range(batch_size)],
        [(torch.full((3,), i), {"id": i, "of": f"{i}"}) for i in range(batch_size)],
        [{"x": torch.full((3,), i), "y": (i, i + 0.5), "z": str(i)} for i in range(batch_size)],
        [Item(torch.full((2,), i), (torch.tensor(i), f"{i}")) for i in range(batch_size)],
    ]
    for examples in items:
        parts = split_batch(default_collate(examples), 1)
        for part, example in zip(parts, examples, strict=True):
            expected = default_collate([example])
            assert_equal(part, expected)


def assert_equal(got: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    elif inner(expected):
        assert [*map(type, inner(got))] == [*map(type, inner(expected))]
        for one, other in zip(inner(got), inner(expected), strict=True):
            assert_equal(one, other)
    else:
        assert got == expected


def test_scalars_go_to_every_part_and_name_lists_are_cut() -> None:
    scale = torch.tensor(0.5)
    batch = {"x": FIVE, "name": list("abcde"), "scale": scale, "split": "train", "none": None}
    first, second = split_batch(batch, 3)
    assert (first["name"], second["name"]) == (["a", "b", "c"], ["d", "e"])
    assert first["scale"] is second["scale"] is scale
    assert first["split"] == second["split"] == "train"
    assert first["none"] is second["none"] is None


def test_a_mapping_that_cannot_be_made_from_a_dict_becomes_one() -> None:
    parts = split_batch(Keyed(fields={"x": FIVE}), 4)
    assert [type(part) for part in parts] == [dict, dict]
    assert torch.equal(torch.cat([part["x"] for part in parts]), FIVE)


@settings(max_examples=40)
@given(batches())
def test_moving_keeps_the_nesting_and_copies_nothing_that_is_there_already(
    drawn: tuple[int, Any],
) -> None:
    batch = plain(drawn[1])
    moved = to_device(batch, "cpu")
    assert type(moved) is type(batch)
    assert all(a is b for a, b in zip(tensors(moved), tensors(batch), strict=True))
    there = to_device(batch, "meta")
    assert {leaf.device.type for leaf in tensors(there)} == {"meta"}
    assert [leaf.shape for leaf in tensors(there)] == [leaf.shape for leaf in tensors(batch)]


@settings(max_examples=40)
@given(batches())
def test_bytes_are_elements_times_their_size(drawn: tuple[int, Any]) -> None:
    batch = plain(drawn[1])
    seen: list[int] = []
    map_tensors(batch, lambda leaf: seen.append(leaf.numel() * leaf.element_size()))
    assert batch_bytes(batch) == sum(seen)
    assert batch_bytes(map_tensors(batch, lambda leaf: leaf.double())) >= batch_bytes(batch)


def test_bytes_of_known_batches() -> None:
    assert batch_bytes({"x": torch.zeros(4, 3), "y": torch.zeros(4, dtype=torch.bool)}) == 52
    assert batch_bytes([torch.zeros(2, dtype=torch.bfloat16), Record(torch.zeros(1))]) == 8
    assert batch_bytes(["no", None, 3]) == 0
