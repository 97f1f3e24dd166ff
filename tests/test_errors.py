"""The error tree, with the exit codes and JSON documents of the command line's contract."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator

import pytest

import rightbatch as rb
from rightbatch._errors import RightbatchError

MEASURED = {"limit_bytes": 100, "needed_bytes": 140, "probes": [], "batch_size": 7}
NOTHING_FITS = rb.NothingFitsError(
    "nothing fits: 140 B are needed",
    error_type="RuntimeError",
    error_message="out of memory",
    measured=MEASURED,
)
FAILED = rb.WorkloadError(
    "the workload fails at batch size 2",
    error_type="RuntimeError",
    error_message="shapes cannot be multiplied",
    traceback="Traceback (most recent call last): ...",
)
EXAMPLES = [
    RightbatchError("it is so"),
    rb.UsageError("no"),
    rb.MissingExtraError("ultralytics", "yolo"),
    rb.LateError("it would be late", cause="refused", retry_after=0.25),
    NOTHING_FITS,
    FAILED,
]


@pytest.mark.parametrize(
    ("error", "code", "also"),
    [
        (rb.UsageError("no"), 2, ValueError),
        (rb.MissingExtraError("ultralytics", "yolo"), 2, ImportError),
        (rb.MissingExtraError("ultralytics", "yolo"), 2, rb.UsageError),
        (NOTHING_FITS, 1, RightbatchError),
        (FAILED, 3, RightbatchError),
    ],
)
def test_every_error_is_in_the_tree_with_its_exit_code(
    error: RightbatchError, code: int, also: type
) -> None:
    assert isinstance(error, rb.RightbatchError)
    assert isinstance(error, also)
    assert error.exit_code == code


def test_errors_without_a_batch_size_are_not_usage_errors() -> None:
    assert not isinstance(NOTHING_FITS, ValueError)
    assert not isinstance(FAILED, ValueError)


def test_every_public_error_has_an_exit_code_of_the_contract() -> None:
    public = [getattr(rb, name) for name in rb.__all__ if name.endswith("Error")]
    assert len(public) == 6
    assert {error.exit_code for error in public} == {1, 2, 3}
    assert all(issubclass(error, rb.RightbatchError) for error in public)


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    text = str(rb.MissingExtraError("ultralytics", "yolo"))
    assert "ultralytics is not installed" in text
    assert "pip install 'rightbatch[yolo]'" in text


def test_the_json_of_a_usage_error_has_the_reason_and_the_error() -> None:
    assert rb.UsageError("what").to_dict() == {
        "batch_size": None,
        "reason": "what",
        "error": {"type": "UsageError", "message": "what"},
    }


def test_the_json_of_nothing_fits_keeps_the_measurements_without_a_batch_size() -> None:
    document = json.loads(json.dumps(NOTHING_FITS.to_dict()))
    assert document == MEASURED | {
        "batch_size": None,
        "reason": "nothing fits: 140 B are needed",
        "error": {"type": "RuntimeError", "message": "out of memory"},
    }


def test_a_workload_error_has_the_workloads_traceback_and_prints_its_reason() -> None:
    assert FAILED.traceback.startswith("Traceback")
    assert str(FAILED) == FAILED.reason == FAILED.to_dict()["reason"]
    assert FAILED.to_dict()["error"]["message"] == "shapes cannot be multiplied"


def classes(of: type[RightbatchError] = RightbatchError) -> Iterator[type[RightbatchError]]:
    """Return the error tree, without classes derived by tests."""
    if of.__module__.startswith("rightbatch."):
        yield of
        for one in of.__subclasses__():
            yield from classes(one)


def test_there_is_an_example_of_every_error_that_is_raised() -> None:
    raised = {one for one in classes() if not one.__name__.startswith("_")}
    assert raised == {type(error) for error in EXAMPLES}


WAYS = [copy.copy, copy.deepcopy] + [
    lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_can_be_copied_and_sent_to_another_process(
    error: RightbatchError, way: Callable[[RightbatchError], RightbatchError]
) -> None:
    other = way(error)
    assert other is not error
    assert type(other) is type(error)
    assert (str(other), other.args, other.__dict__) == (str(error), error.args, error.__dict__)
    assert other.to_dict() == error.to_dict()


def test_a_subclass_of_a_user_is_pickled_with_its_attributes() -> None:
    class Mine(rb.LateError):
        def __init__(self, camera: str) -> None:
            super().__init__(f"{camera} is late", cause="late")
            self.camera = camera

    mine = Mine("belt")
    mine.add_note("seen on Monday")
    other = copy.copy(mine)
    assert (str(other), other.camera, other.cause) == ("belt is late", "belt", "late")
    assert other.__notes__ == ["seen on Monday"]
