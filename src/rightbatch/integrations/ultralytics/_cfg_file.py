"""`cfg=FILE`: the arguments of `YOLO.train` in a file. Imports no ultralytics."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch.integrations.ultralytics._arguments import (
    NOT_OF_A_TRAINING,
    check_names,
    defaults_file,
)


def cfg_arguments(file: str | Path) -> dict[str, Any]:
    """Return the arguments in a file, such as the `args.yaml` of an earlier run.

    Those that a verb sets are left out, above all the earlier run's folder; so are those with
    Ultralytics' default.

    Raises:
        UsageError: if there is no such file, or it has something else than arguments.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no cfg file {file}; looked in {path.absolute().parent}")
    found = _loaded(path)
    if not isinstance(found, dict):
        raise UsageError(
            f"the cfg file {file} has no arguments: it needs lines such as 'lr0: 0.01'"
        )
    known = defaults_file()
    defaults = _loaded(known) if known is not None else {}
    own = {
        str(name): value
        for name, value in found.items()
        if name not in NOT_OF_A_TRAINING and value is not None and value != defaults.get(name)
    }
    check_names(own)
    return own


def _loaded(path: Path) -> Any:
    yaml: Any = import_module("yaml")  # a dependency of ultralytics
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
