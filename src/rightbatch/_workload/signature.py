"""Which keywords a function of the user's, or of a framework, takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def accepts(function: Callable[..., Any], name: str, *, unknown: bool) -> bool:
    """Return whether a function takes a keyword; `unknown` if its signature cannot be read.

    Compiled functions (C++ extensions, TorchScript) may have no signature.

    >>> accepts(lambda x, *, scale: x, "scale", unknown=False)
    True
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return unknown
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.kind is p.VAR_KEYWORD or (p.kind in named and p.name == name) for p in parameters)
