"""Replay of recordings of the reference allocator, unchanged and altered."""

from __future__ import annotations

import gzip
import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_allocator import MIB, NoRoom, Reference, shuffled_driver

from rightbatch import UsageError
from rightbatch._predict.allocator import AllocatorSettings
from rightbatch._predict.replay import ReplayResult, read_recording, replay

Recording = dict[str, Any]


def record(
    seed: int, chosen: AllocatorSettings, *, before: int = 0, count: int = 120
) -> tuple[Recording, Reference]:
    """A random run of the reference, recorded after `before` steps; and the reference at its end.

    What was there when the recording began is its initial state, as in a snapshot.
    """
    dice = random.Random(seed)
    reference = Reference(chosen, shuffled_driver(seed))
    step(reference, dice, before)
    live = [[piece.address, piece.size] for piece in reference.live()]
    initial = {"segments": [list(pair) for pair in reference.segments.items()], "live": live}
    reference.log.clear()
    step(reference, dice, count)
    recording: Recording = {
        "settings": {
            "max_split_size": chosen.max_split_size or -1,
            "roundup_power2_divisions": {"all": chosen.roundup_power2_divisions},
            "garbage_collection_threshold": chosen.garbage_collection_threshold,
            "expandable_segments": False,
        },
        "initial": initial,
        "events": [list(event) for event in reference.log],
    }
    return recording, reference


def step(reference: Reference, dice: random.Random, count: int) -> None:
    for _ in range(count):
        live = reference.live()
        draw = dice.random()
        if draw < 0.55 or not live:
            try:
                reference.malloc(dice.randint(1, dice.choice([600, MIB, 3 * MIB, 50 * MIB])))
            except NoRoom:
                reference.free(live[0].address)
        elif draw < 0.97:
            reference.free(dice.choice(live).address)
        else:
            reference.empty_cache()


def of_kind(recording: Recording, kind: str) -> list[list[Any]]:
    return [event for event in recording["events"] if event[0] == kind]


def is_as_recorded(result: ReplayResult) -> bool:
    return (
        result.address_matches == result.allocations and result.segment_matches == result.segments
    )


settings_of_all_kinds = st.sampled_from(
    [
        AllocatorSettings(),
        AllocatorSettings(capacity=200 * MIB),
        AllocatorSettings(capacity=200 * MIB, max_split_size=21 * MIB),
        AllocatorSettings(roundup_power2_divisions=4),
        AllocatorSettings(capacity=200 * MIB, garbage_collection_threshold=0.5),
    ]
)
seeds = st.integers(0, 2**32)


@settings(max_examples=50)
@given(seeds, settings_of_all_kinds)
def test_a_recording_from_the_start_is_reproduced(seed: int, chosen: AllocatorSettings) -> None:
    recording, reference = record(seed, chosen)

    result = replay(recording)

    assert is_as_recorded(result)
    assert result.allocations == len(of_kind(recording, "a"))
    assert result.segments == len(of_kind(recording, "s"))
    assert result.events == len(recording["events"])
    assert result.peak_reserved_bytes >= reference.reserved
    assert result.peak_allocated_bytes >= reference.allocated


@settings(max_examples=50)
@given(seeds, settings_of_all_kinds, st.integers(1, 120))
def test_a_recording_from_the_middle_is_reproduced(
    seed: int, chosen: AllocatorSettings, before: int
) -> None:
    recording, _ = record(seed, chosen, before=before)

    assert is_as_recorded(replay(recording))


def test_the_recordings_adopt_and_release_segments() -> None:
    recordings = [record(seed, AllocatorSettings(200 * MIB), before=60)[0] for seed in range(20)]

    assert sum(len(of_kind(recording, "S")) for recording in recordings) > 20
    assert sum(len(recording["initial"]["segments"]) for recording in recordings) > 20
    assert sum(len(recording["initial"]["live"]) for recording in recordings) > 20


@settings(max_examples=25)
@given(seeds, st.integers(0, 2**16), st.integers(0, 60))
def test_an_altered_address_is_the_only_one_that_does_not_match(
    seed: int, pick: int, before: int
) -> None:
    recording, _ = record(seed, AllocatorSettings(), before=before)
    allocations = of_kind(recording, "a")
    allocations[pick % len(allocations)][1] += 1

    result = replay(recording)

    assert not is_as_recorded(result)
    assert result.address_matches == result.allocations - 1
    assert result.segment_matches == result.segments


@settings(max_examples=25)
@given(seeds, st.integers(0, 2**16), st.sampled_from([-512, 512, 2 * MIB]))
def test_an_altered_segment_size_is_the_only_one_that_does_not_match(
    seed: int, pick: int, by: int
) -> None:
    recording, _ = record(seed, AllocatorSettings())
    segments = of_kind(recording, "s")
    segments[pick % len(segments)][2] += by

    result = replay(recording)

    assert not is_as_recorded(result)
    assert result.segment_matches == result.segments - 1
    assert result.address_matches == result.allocations


@settings(max_examples=25)
@given(seeds)
def test_a_segment_that_was_not_recorded_leaves_addresses_that_do_not_match(seed: int) -> None:
    recording, _ = record(seed, AllocatorSettings())
    recording["events"].remove(of_kind(recording, "s")[0])

    assert replay(recording).address_matches < len(of_kind(recording, "a"))


def test_other_settings_than_those_recorded_do_not_match() -> None:
    recording, _ = record(3, AllocatorSettings(max_split_size=21 * MIB), count=400)
    assert is_as_recorded(replay(recording))

    recording["settings"] = {}

    assert not is_as_recorded(replay(recording))


def test_a_recording_is_not_changed() -> None:
    recording, _ = record(1, AllocatorSettings(), before=50)
    before = deepcopy(recording)

    replay(recording)

    assert recording == before


def test_initial_blocks_are_rounded_where_a_recording_has_what_was_asked_for() -> None:
    start = 1 << 40
    recording = {
        "initial": {"segments": [[start, 2 * MIB]], "live": [[start, 1700], [start + 2048, 4]]},
        "events": [["a", start + 2560, 100], ["f", start, 1700], ["a", start, 2000]],
    }

    assert is_as_recorded(replay(recording))


def test_peaks_are_those_of_the_recording() -> None:
    start = 1 << 40
    recording = {
        "initial": {"segments": [[start, 20 * MIB]], "live": [[start, 2 * MIB]]},
        "events": [
            ["a", start + 2 * MIB, 4 * MIB],
            ["s", 2 * start, 30 * MIB],
            ["a", 2 * start, 30 * MIB],
            ["f", 2 * start, 30 * MIB],
            ["S", 2 * start, 30 * MIB],
        ],
    }

    result = replay(recording)

    assert is_as_recorded(result)
    assert (result.allocations, result.segments, result.events) == (2, 1, 5)
    assert result.peak_reserved_bytes == 50 * MIB
    assert result.peak_allocated_bytes == 36 * MIB


def test_a_result_is_a_document_and_a_sentence() -> None:
    result = ReplayResult(7, 6, 3, 2, 20 * MIB, 5 * MIB, 12)

    document = result.to_dict()

    assert json.loads(json.dumps(document)) == document
    assert document == {
        "allocations": 7,
        "address_matches": 6,
        "segments": 3,
        "segment_matches": 2,
        "peak_reserved_bytes": 20 * MIB,
        "peak_allocated_bytes": 5 * MIB,
        "events": 12,
    }
    assert "6 of 7 addresses" in str(result)
    assert "2 of 3 new segments" in str(result)


# Files


@pytest.mark.parametrize("name", ["recording.json", "recording.json.gz", "without-a-suffix"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_recording_is_read_gzipped_or_not_whatever_it_is_called(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    recording, _ = record(5, AllocatorSettings(), before=30)
    text = json.dumps(recording).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if zipped else text)

    read = read_recording(path)

    assert read == recording
    assert replay(read) == replay(recording)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.json"

    with pytest.raises(UsageError, match=r"there is no file .*none\.json"):
        read_recording(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"\xff\xfe\x00",
        gzip.compress(b"not JSON"),
        gzip.compress(b'{"events": []}')[:-10],
        b"\x1f\x8b of something else",
    ],
    ids=["empty", "text", "binary", "zipped text", "cut short", "not zipped"],
)
def test_a_file_that_is_not_json_raises_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=r"file is not a recording: ."):
        read_recording(path)


def test_a_damaged_gzip_file_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = gzip.compress(b'{"events": []}', mtime=0)
    path.write_bytes(whole[:10] + b"\xff" * 8 + whole[18:])

    with pytest.raises(UsageError, match=r"file is not a recording: ."):
        read_recording(path)


def test_a_folder_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a recording"):
        read_recording(tmp_path)


@pytest.mark.parametrize("document", ["[]", "3", "{}", '{"events": {}}', '{"segments": []}'])
def test_a_document_without_events_raises_an_error(tmp_path: Path, document: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(document, encoding="utf-8")

    with pytest.raises(UsageError, match=r"expected an object with `events`.*a \(alloc\)"):
        read_recording(path)


# What cannot be


def test_an_unknown_event_raises_an_error_with_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="unknown event 'x'; valid events are a, f, s and S"):
        replay({"events": [["x", 0, 0]]})


@pytest.mark.parametrize(
    "events",
    [
        [["f", 4096, 512]],
        [["s", 4096, 2 * MIB], ["a", 4096, 512], ["f", 4096, 512], ["f", 4096, 512]],
        [["s", 4096, 2 * MIB], ["a", 4096, 512], ["f", 4608, 512]],
    ],
    ids=["never", "twice", "inside"],
)
def test_freeing_an_unallocated_address_raises_an_error(events: list[list[Any]]) -> None:
    with pytest.raises(UsageError, match=r"did not allocate: (4096|4608)"):
        replay({"events": events})


@pytest.mark.parametrize("event", [["a", 4096], ["a", 4096, "512"], [], 7, ["a", 4096, None]])
def test_an_event_of_another_shape_is_an_error(event: Any) -> None:
    with pytest.raises(UsageError, match="the recording"):
        replay({"events": [event]})


def test_an_initial_block_without_a_segment_is_an_error() -> None:
    with pytest.raises(UsageError, match="4096"):
        replay({"initial": {"segments": [], "live": [[4096, 512]]}, "events": []})


@pytest.mark.parametrize("address", [4096, (1 << 32) + 3 * MIB], ids=["before", "behind"])
def test_an_initial_block_outside_its_segment_is_an_error(address: int) -> None:
    initial = {"segments": [[1 << 32, 2 * MIB]], "live": [[address, 512]]}

    with pytest.raises(UsageError, match=str(address)):
        replay({"initial": initial, "events": []})


def test_rounding_that_differs_by_size_is_not_simulated() -> None:
    divisions = {"roundup_power2_divisions": {"256": 1, "512": 2, ">": 8}}

    with pytest.raises(UsageError, match="roundup_power2_divisions that differ by size"):
        replay({"settings": divisions, "events": []})


@pytest.mark.parametrize("divisions", [{}, {"256": 4, ">": 4}, 0, 4])
def test_rounding_that_is_the_same_for_all_sizes_is(divisions: Any) -> None:
    events = [["s", 1 << 32, 2 * MIB], ["a", 1 << 32, 2049], ["a", (1 << 32) + 2560, 512]]
    recording = {"settings": {"roundup_power2_divisions": divisions}, "events": events}

    assert is_as_recorded(replay(recording))


def test_a_recording_with_expandable_segments_raises_an_error() -> None:
    with pytest.raises(UsageError, match="expandable segments"):
        replay({"settings": {"expandable_segments": True}, "events": []})


@pytest.mark.parametrize(
    "recording",
    [
        {"events": [1]},
        {"events": [["a", 1]]},
        {"events": [["a", "x", "y"]]},
        {"events": [["a", 0, None]]},
        {"events": [], "settings": 3},
        {"events": [], "initial": {"segments": [1]}},
        {"events": [], "initial": [1]},
        {"events": [["f", [], 1]]},
    ],
)
def test_a_damaged_recording_is_refused(recording: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="recording"):
        replay(recording)


def test_a_file_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rightbatch._predict.replay.MOST_BYTES", 1000)
    for name, data, said in (
        ("bomb", gzip.compress(bytes(10_000_000)), "unpacks to more"),
        ("cut", gzip.compress(b'{"events": []}')[:-9], "cut off"),
        ("deep", b"[" * 100_000, "not a recording"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=said):
            read_recording(tmp_path / name)
    (tmp_path / "good").write_bytes(gzip.compress(b'{"events": []}'))
    assert read_recording(tmp_path / "good") == {"events": []}
