"""Resolve the argument of a verb to a factory that can be sent to another process.

A callable is returned as it is. `"file.py:function"` becomes a `FileFactory`. Any other string goes
to the integrations, which register a function `from_spec(spec, **options)` under the entry point
group `rightbatch.specs`. Does not import torch, so that verbs start fast.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
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


def resolve(workload: object, **options: Any) -> Factory:
    """Return the factory for a callable, `"file.py:function"`, or a spec of an integration.

    `options` are passed to integrations (`data=`, `imgsz=`).

    Raises:
        UsageError: if `workload` is none of these, or does not accept the options.
    """
    if isinstance(workload, str | Path):
        return _from_text(str(workload), options)
    if not callable(workload) and not hasattr(workload, "session"):
        raise UsageError(
            "expected a factory (a callable without arguments that builds the workload, because "
            f"every probe builds its own), got {type(workload).__name__}"
        )
    if options:
        raise UsageError(f"a factory takes no options, got {', '.join(sorted(options))}")
    return workload  # type: ignore[return-value]


def _from_text(text: str, options: dict[str, Any]) -> Factory:
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {file} in {path.parent}")
        if options:
            raise UsageError(f"file.py:function takes no options, got {', '.join(options)}")
        return FileFactory(path, function)
    integrations = entry_points(group="rightbatch.specs")
    for integration in integrations:
        factory = integration.load()(text, **options)
        if factory is not None:
            return factory  # type: ignore[no-any-return]
    known = ", ".join(sorted(integration.name for integration in integrations)) or "none"
    hint = f"; did you mean {text}:FUNCTION?" if text.endswith(".py") else ""
    raise UsageError(
        f"{text!r} is neither file.py:function nor a model of an integration "
        f"(installed: {known}){hint}"
    )


def _is_own_function(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module
