"""JSON that any parser reads."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rightbatch._json import to_json


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"default": list}])
def test_what_is_not_finite_becomes_null(options: dict[str, Any]) -> None:
    content: dict[str, Any] = {"a": [1.5, math.nan], "b": {"c": -math.inf}, "d": "NaN"}
    if "default" in options:
        content["e"] = range(2)
    text = to_json(content, **options)
    found = json.loads(text, parse_constant=refuse)
    expected: dict[str, Any] = {"a": [1.5, None], "b": {"c": None}, "d": "NaN"}
    assert found == expected | ({"e": [0, 1]} if "default" in options else {})


def test_other_content_is_as_json_writes_it() -> None:
    content = {"a": [1, 2.5, None, True]}
    assert to_json(content, indent=2) == json.dumps(content, indent=2)


def test_what_contains_itself_is_an_error() -> None:
    content: list[Any] = []
    content.append(content)
    with pytest.raises(ValueError, match="ircular"):
        to_json(content)
