"""Make a `Training` of the argument of a verb. Imports no torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._training.protocol import Training
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._workload.factory import FileFactory


def resolve(workload: object, **options: Any) -> Training:
    """Return the training of a callable, `"file.py:function"`, a spec, or a `Training` itself.

    A spec is text that an integration knows, which registers a function `from_spec(spec,
    **options)` under the entry point group `rightbatch.specs`. `options` are for it (`data=`,
    `imgsz=`).

    Raises:
        UsageError: if it is none of these, or takes no options.
    """
    if isinstance(workload, str | Path):
        return _from_text(str(workload), options)
    if options:
        raise UsageError(f"a factory takes no options, got {', '.join(sorted(options))}")
    if isinstance(workload, Training):
        return workload
    if not callable(workload):
        raise UsageError(
            "expected a factory (a callable without arguments that builds the workload, since "
            f"every probe builds its own), got {type(workload).__name__}"
        )
    return WorkloadTraining(workload)


def _from_text(text: str, options: dict[str, Any]) -> Training:
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {file} in {path.parent}")
        if options:
            raise UsageError(f"file.py:function takes no options, got {', '.join(options)}")
        return WorkloadTraining(FileFactory(path, function))
    integrations = entry_points(group="rightbatch.specs")
    for integration in integrations:
        training: Training | None = integration.load()(text, **options)
        if training is not None:
            return training
    known = ", ".join(sorted(integration.name for integration in integrations)) or "none"
    hint = f"; did you mean {text}:FUNCTION?" if text.endswith(".py") else ""
    raise UsageError(
        f"{text!r} is neither file.py:function nor a model of an integration "
        f"(installed: {known}){hint}"
    )
