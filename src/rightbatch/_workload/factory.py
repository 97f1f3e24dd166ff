"""A factory in a file, `"file.py:function"`, loaded by whatever process calls it.

Does not import torch, so that verbs start fast.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError

Factory = Callable[[], Any]


@dataclass(frozen=True)
class FileFactory:
    """A factory defined in a file, loaded by the process that calls it."""

    path: Path
    function: str

    def load(self) -> Factory:
        """Run the file and return the function.

        Raises:
            UsageError: if the file does not define the function.
        """
        folder = str(self.path.parent)
        if folder not in sys.path:  # like a script, the file can import modules beside it
            sys.path.insert(0, folder)
        name = f"_rightbatch_{self.path.stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # loader workers and dataclasses look up their module
        spec.loader.exec_module(module)
        found = getattr(module, self.function, None)
        if not callable(found):
            known = [key for key, value in vars(module).items() if _is_own_function(value, name)]
            raise UsageError(
                f"{self.path.name} has no function {self.function!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        return found  # type: ignore[no-any-return]

    def __call__(self) -> Any:
        return self.load()()


@dataclass(frozen=True)
class CalledWith:
    """A factory that is called with one of its arguments."""

    factory: Factory | FileFactory
    name: str
    value: Any

    def load(self) -> CalledWith:
        """Import the factory from its file, if it has one."""
        if isinstance(self.factory, FileFactory):
            return CalledWith(self.factory.load(), self.name, self.value)
        return self

    def __call__(self) -> Any:
        """Call it.

        Raises:
            UsageError: if it has no argument of this name; the message says which it has.
        """
        factory: Callable[..., Any] = self.factory
        if isinstance(self.factory, FileFactory):
            factory = self.factory.load()
        taken = inspect.signature(factory).parameters
        if self.name not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            known = ", ".join(taken) or "none"
            called = getattr(factory, "__name__", "the factory")
            raise UsageError(f"{called}() has no argument {self.name!r}; it has {known}")
        return factory(**{self.name: self.value})


def _is_own_function(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module
