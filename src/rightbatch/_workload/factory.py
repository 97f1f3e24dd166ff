"""A factory in a file, `"file.py:function"`, loaded by whatever process calls it.

Does not import torch, so that verbs start fast.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rightbatch._errors import UsageError

Factory = Callable[[], Any]

FILES: dict[str, Path] = {}
"""The files that were imported, by the name of their module, which no other process can import."""


@dataclass(frozen=True)
class FileFactory:
    """A factory defined in a file, loaded by the process that calls it."""

    path: Path
    function: str

    def load(self) -> Factory:
        """Run the file and return the function.

        Raises:
            UsageError: if the file does not define the function, or ends the process.
        """
        module = import_file(self.path)
        found = getattr(module, self.function, None)
        if not callable(found):
            name = module.__name__
            known = [key for key, value in vars(module).items() if _is_own_function(value, name)]
            raise UsageError(
                f"{self.path.name} has no function {self.function!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        return found  # type: ignore[no-any-return]

    def __call__(self) -> Any:
        function = self.load()
        with _as_script(self.path):
            return function()


def import_file(path: Path) -> ModuleType:
    """Run a file as a module, and return it; like a script, it can import modules beside it.

    In a package, which has an `__init__.py`, its relative imports work as with `python -m`.

    Raises:
        UsageError: if the file ends the process.
    """
    root, package = path.parent, ""
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        root, package = root.parent, f"{root.name}.{package}"
    for folder in (str(root), str(path.parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    name = f"{package}_rightbatch_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # loader workers and dataclasses look up their module
    with _as_script(path):
        spec.loader.exec_module(module)
    FILES[name] = path
    return module


@contextmanager
def _as_script(path: Path) -> Iterator[None]:
    """Give a file the arguments of a script without any, instead of those of rightbatch.

    Raises:
        UsageError: if it ends the process, as `argparse` does where an argument is missing.
    """
    before = sys.argv
    sys.argv = [str(path)]
    try:
        yield
    except SystemExit as error:
        raise UsageError(
            f"{path.name} ended the process (SystemExit: {error.code}) when it was imported or its "
            "workload was built. It is imported without arguments: give those of argparse "
            'defaults, and put what only a script does under `if __name__ == "__main__":`'
        ) from error
    finally:
        sys.argv = before


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
