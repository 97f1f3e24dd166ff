"""Compact JSON of a study's documents."""

from __future__ import annotations

import json
from typing import Any

from rightbatch._json import finite


def to_json(content: Any) -> str:
    """Return compact JSON, with null for NaN and infinity."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):
        return json.dumps(finite(content), allow_nan=False, separators=(",", ":"))
