"""What a study may be asked, and what may join one that is there."""

from __future__ import annotations

from typing import Any

import pytest

from rightbatch._errors import UsageError
from rightbatch._study.config import Asked
from rightbatch._study.records import RunKey, Target


def asked(**changes: Any) -> Asked:
    about: dict[str, Any] = {
        "workload": "parts",
        "batches": (8, 16, 32),
        "seeds": (0, 1),
        "epochs": 5,
        "target": Target("loss", 0.3),
    }
    return Asked(**about | changes)


def test_every_size_comes_once_before_any_comes_twice() -> None:
    keys = asked(learning_rates=(0.5, 1.0)).keys()
    assert len(set(keys)) == len(keys) == 3 * 2 * 2
    assert {key.batch_size for key in keys[:3]} == {8, 16, 32}
    assert [key.seed for key in keys] == 6 * [0] + 6 * [1]


def test_the_size_that_the_rate_was_chosen_for_comes_first_and_then_the_largest() -> None:
    keys = asked(seeds=(0,)).keys()
    assert keys == [RunKey(16, 0), RunKey(32, 0), RunKey(8, 0)]


def test_more_sizes_seeds_and_rates_join_in_their_order() -> None:
    before = asked().to_dict()
    now = asked(batches=(64, 8), seeds=(1, 2), learning_rates=(2.0,)).joined(before, "runs")
    assert now.batches == (8, 16, 32, 64)
    assert now.seeds == (0, 1, 2)
    assert now.learning_rates == (1.0, 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 6},
        {"target": None},
        {"target": Target("loss", 0.2)},
        {"rule": "none"},
        {"base_batch": 8},
        {"noise_scale": 3.0},
        {"seconds": 1.0},
        {"workload": "others"},
        {"settings": {"optimizer": "SGD"}},
        {"memory": 10**9},
    ],
)
def test_a_study_of_something_else_does_not_go_into_the_same_folder(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match=f"holds another study: {next(iter(changes))} was"):
        asked(**changes).joined(asked().to_dict(), "runs/parts")


def test_a_folder_of_an_older_version_lacks_what_was_not_asked_then() -> None:
    before = asked().to_dict()
    del before["processes"]
    assert asked().joined(before, "runs") == asked()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": ()}, "batches are whole numbers of at least 1"),
        ({"batches": (8, 0)}, "batches are whole numbers of at least 1"),
        ({"batches": (8, 8)}, "each named once"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"rule": "linear"}, "one of scaling, none"),
        ({"learning_rates": (1.0, 0.0)}, "factors above 0"),
        ({"noise_scale": 0.0}, "above 0"),
        ({"noise_scale": float("nan")}, "above 0"),
        ({"seconds": 0.0}, "above 0 s"),
        ({"processes": 0}, "at least 1"),
        ({"base_batch": 0}, "base_batch"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(**changes)
