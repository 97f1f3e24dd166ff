"""JSON without NaN and infinity, which JSON does not have and strict parsers reject."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any, **options: Any) -> str:
    """Return the JSON of `json.dumps(content, **options)`, with null for NaN and infinity.

    Raises:
        TypeError: if a value cannot be converted.
        ValueError: if the content contains itself.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        parsed = json.loads(json.dumps(content, **options), parse_constant=lambda _: None)
        options.pop("default", None)
        return json.dumps(parsed, **options)


def finite(content: Any) -> Any:
    """Return the content as dicts, lists and numbers, with None for NaN and infinity."""
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content
