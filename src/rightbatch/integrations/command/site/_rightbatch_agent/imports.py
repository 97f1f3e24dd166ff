"""A callback after a module was imported."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any, Callable


def after_import(name: str, callback: Callable[[Any], None]) -> None:
    """Call `callback` with the module as soon as it is imported; until then it costs nothing."""
    sys.meta_path.insert(0, _Finder(name, callback))


class _Finder:
    """Finds the module as the other finders do, and wraps the execution of its code."""

    def __init__(self, name: str, callback: Callable[[Any], None]) -> None:
        self._name, self._callback = name, callback
        self._is_asking = False  # the other finders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = find_spec(name)
        finally:
            self._is_asking = False
        if spec is None or spec.loader is None:
            return spec
        loader, callback = spec.loader, self._callback
        execute = loader.exec_module

        def execute_and_call(module: Any) -> None:
            del loader.exec_module  # the wrapper, which hides the method
            # Not earlier: Datasets and Transformers ask for the spec before they import.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            execute(module)
            try:
                callback(module)
            except Exception as error:
                _say(error)

        loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


def _say(error: Exception) -> None:
    """Report an error of the agent's own; the command goes on."""
    from .connection import report

    report(event="agent_error", error=f"{type(error).__name__}: {error}")
