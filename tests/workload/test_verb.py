"""Verbs made from a function and a dataclass of options, and the options that verbs share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

import rightbatch as rb
from rightbatch._errors import UsageError
from rightbatch._workload.options import Options, ProbeOptions, batch_or_auto
from rightbatch._workload.verb import takes


@dataclass(frozen=True, kw_only=True)
class MixOptions(Options):
    """Options."""

    parts: int
    label: str = "mixed"


@takes(MixOptions)
def mix(workload: object, options: MixOptions, **spec: Any) -> tuple[object, MixOptions, Any]:
    """Mix it."""
    return workload, options, spec


def test_keywords_become_options_and_others_the_spec() -> None:
    assert mix("model.yaml", parts=2, data="parts.yaml") == (
        "model.yaml",
        MixOptions(parts=2),
        {"data": "parts.yaml"},
    )
    assert mix(workload="w", parts=1, label="x", progress=False) == (
        "w",
        MixOptions(parts=1, label="x", progress=False),
        {},
    )


def test_the_signature_shows_every_option_its_own_first() -> None:
    signature = inspect.signature(mix)
    assert list(signature.parameters) == ["workload", "parts", "label", "progress", "spec"]
    assert signature.parameters["parts"].default is inspect.Parameter.empty
    assert signature.parameters["label"].default == "mixed"
    assert signature.parameters["label"].annotation is str
    assert signature.parameters["label"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (mix.__name__, mix.__doc__) == ("mix", "Mix it.")


def test_an_option_that_is_missing_or_no_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'parts'"):
        mix("w")
    with pytest.raises(TypeError, match="positional"):
        mix("w", 2)


@pytest.mark.parametrize("verb", [rb.fit, rb.predict, rb.tune, rb.train, rb.study])
def test_a_factory_takes_no_other_keyword(verb: Any) -> None:
    required = {
        name: {"batch": 8, "epochs": 1, "out": "unused", "batches": (8,)}[name]
        for name, parameter in inspect.signature(verb).parameters.items()
        if name != "workload"
        and parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is inspect.Parameter.empty
    }
    about = required | ({"epochs": 1} if verb is rb.study else {})
    with pytest.raises(UsageError, match="a factory takes no options, got memroy"):
        verb(lambda: None, memroy="2GiB", **about)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"margin": 1.0}, "margin is a share of the limit"),
        ({"margin": -0.1}, "margin is a share of the limit"),
        ({"memory": "2 gigs"}, "'2 gigs' is not a memory size"),
        ({"memory": 0}, "0 is not a memory size"),
        ({"max_batch": 0}, "max_batch is at least 1"),
    ],
)
def test_shared_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ProbeOptions(**options)


@pytest.mark.parametrize("value", [0, -1, "0", "many", "", 2.5])
def test_a_batch_is_auto_or_a_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(UsageError, match="parts is 'auto' or a number of at least 1"):
        batch_or_auto("parts", value)
