"""Optuna's studies: in memory, and without a word on stderr."""

from __future__ import annotations

import threading
from typing import Any

from rightbatch._errors import MissingExtraError

_quiet = threading.Lock()


def optuna_module() -> Any:
    """Optuna.

    Raises:
        MissingExtraError: without it.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "search") from None
    return optuna


def study_in_memory(**options: Any) -> Any:
    """`optuna.create_study`, which would say so; how much Optuna says elsewhere stays as it was."""
    optuna = optuna_module()
    with _quiet:  # one at a time, or the second would take the first one's silence for the user's
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            return optuna.create_study(**options)
        finally:
            optuna.logging.set_verbosity(before)
