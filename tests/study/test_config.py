"""The configuration of a study: what it may be, and what may join one that is there."""

from __future__ import annotations

from typing import Any

import pytest

from rightbatch._errors import UsageError
from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import RunKey, Target


def config(
    workload: str = "parts",
    base_batch: int = 16,
    target: Target | None = Target("loss", 0.3),  # noqa: B008  frozen
    **changes: Any,
) -> StudyConfig:
    about: dict[str, Any] = {"batches": (8, 16, 32), "seeds": (0, 1), "epochs": 5, "out": "runs"}
    return StudyConfig(workload, StudyOptions(**about | changes), base_batch, target)


def test_every_size_comes_once_before_any_comes_twice() -> None:
    keys = config(learning_rates=(0.5, 1.0)).keys()
    assert len(set(keys)) == len(keys) == 3 * 2 * 2
    assert {key.batch_size for key in keys[:3]} == {8, 16, 32}
    assert [key.seed for key in keys] == 6 * [0] + 6 * [1]


def test_the_size_that_the_rate_was_chosen_for_comes_first_and_then_the_largest() -> None:
    keys = config(seeds=(0,)).keys()
    assert keys == [RunKey(16, 0), RunKey(32, 0), RunKey(8, 0)]


def test_more_sizes_seeds_and_rates_join_in_their_order() -> None:
    before = config().to_dict()
    now = config(batches=(64, 8), seeds=(1, 2), learning_rates=(2.0,)).joined(before, "runs")
    assert now.batches == (8, 16, 32, 64)
    assert now.seeds == (0, 1, 2)
    assert now.options.learning_rates == (1.0, 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 6},
        {"target": None},
        {"target": Target("loss", 0.2)},
        {"rule": "none"},
        {"base_batch": 8},
        {"noise_scale": 3.0},
        {"budget": 1.0},
        {"workload": "others"},
        {"settings": {"optimizer": "SGD"}},
        {"memory": 10**9},
    ],
)
def test_a_study_of_something_else_does_not_go_into_the_same_folder(
    changes: dict[str, Any],
) -> None:
    (name,) = changes
    stored = {"budget": "seconds"}.get(name, name)
    with pytest.raises(UsageError, match=f"holds another study: {stored} was"):
        config(**changes).joined(config().to_dict(), "runs/parts")


def test_a_folder_of_an_older_version_lacks_what_was_not_asked_then() -> None:
    before = config().to_dict()
    del before["processes"]
    assert config().joined(before, "runs") == config()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": ()}, "batches are whole numbers of at least 1"),
        ({"batches": (8, 0)}, "batches are whole numbers of at least 1"),
        ({"batches": (8, 8)}, "must not have duplicates"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "without duplicates"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"rule": "linear"}, "one of scaling, none"),
        ({"learning_rates": (1.0, 0.0)}, "factors above 0"),
        ({"noise_scale": 0.0}, "above 0"),
        ({"noise_scale": float("nan")}, "above 0"),
        ({"budget": 0.0}, "not a duration"),
        ({"processes": 0}, "at least 1"),
        ({"base_batch": 0}, "base_batch"),
        ({"steps": 0}, "steps is at least 1"),
        ({"metrics": "accuracy=(.*)"}, "metrics is a list"),
        ({"metrics": ["accuracy"]}, "write NAME=REGEX"),
        ({"metrics": ["accuracy=acc [0-9]+"]}, "no group for the number"),
        ({"metrics": ["accuracy=acc (["]}, "not valid: unterminated character set"),
        ({"metrics": ["accuracy=a(.)", "accuracy=b(.)"]}, "two regexes for metric accuracy"),
        ({"micro_batch": "many"}, "'auto' or a number"),
        ({"search": 3, "learning_rates": (0.5, 1.0)}, "not both"),
        ({"margin": 1.0}, "margin is a share"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    required: dict[str, Any] = {"batches": (8,), "out": "runs", "epochs": 5}
    with pytest.raises(UsageError, match=said):
        StudyOptions(**required | changes)


def test_the_stored_form_has_the_names_that_studies_already_stored_have() -> None:
    """A folder that an earlier version wrote goes on."""
    stored = {
        "workload": "parts",
        "batches": [8, 16],
        "seeds": [0, 1, 2],
        "epochs": 100,
        "target": {"metric": "loss", "value": 0.3},
        "seconds": 90.0,
        "rule": "scaling",
        "learning_rates": [1.0],
        "base_batch": 16,
        "noise_scale": None,
        "micro_batch": 4,
        "processes": 1,
        "memory": 2**31,
        "margin": 0.05,
        "settings": {"optimizer": "SGD"},
    }
    asked = config(
        batches=(8, 16),
        seeds=3,
        epochs=None,
        budget="90 s",
        memory="2GiB",
        micro_batch="4",
        settings={"optimizer": "SGD"},
    )
    assert asked.to_dict() == stored
    assert list(asked.to_dict()) == list(stored)
    assert asked.joined(stored, "runs").to_dict() == stored
