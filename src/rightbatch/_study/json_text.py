"""JSON of documents with NaN and infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any) -> str:
    """Return compact JSON, with null for NaN and infinity."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):
        return json.dumps(finite(content), allow_nan=False, separators=(",", ":"))


def finite(content: Any) -> Any:
    """Return the content as dicts, lists and numbers, with None for NaN and infinity."""
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content
