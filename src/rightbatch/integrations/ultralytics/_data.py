"""The data set of a training, as `YOLO.train` finds it. Imports no ultralytics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError
from rightbatch.integrations.ultralytics._isolation import settings_of_user, without_splits

_EVALUATED = ("val", "validation", "valid", "test")
_TABLES = (".yaml", ".yml")
_REMOTE = ("http:", "https:", "ul:")


def found_data(data: str | Path, split: str | None) -> str:
    """Return the absolute path of a data set, or the name of one that Ultralytics knows.

    Raises:
        UsageError: if it does not exist, cannot be measured, or lacks a folder that it needs.
    """
    if not isinstance(data, str | Path):
        raise UsageError(f"data is one data set, not {data!r}: measure each by itself")
    if Path(data).suffix == ".ndjson":
        raise UsageError(
            f"{data} would be converted, and its images downloaded, for every probe: convert it "
            "once with ultralytics.data.converter.convert_ndjson_to_yolo, and give the result"
        )
    path = Path(data).expanduser()
    if path.is_dir():
        _check_folder(path.resolve(), split)
    if path.exists():
        return str(path.resolve())
    if not str(data).startswith(_REMOTE) and not _is_known(path):
        what = "data set file" if path.suffix in _TABLES else "data set"
        raise UsageError(f"there is no {what} {data}; looked in {path.absolute().parent}")
    return str(data)


@contextmanager
def missing_data_refused() -> Iterator[None]:
    """Raise `UsageError` where Ultralytics finds no data set, or no images of it."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("Dataset '"):
            raise
        if not isinstance(error.__cause__, FileNotFoundError | ConnectionError):
            raise
        raise UsageError(str(error)) from error


def _check_folder(folder: Path, split: str | None) -> None:
    """Check a folder for classification; other tasks' folders have a YAML file."""
    if any(table for suffix in _TABLES for table in folder.glob(f"*{suffix}")):
        return
    if not (folder / "train").is_dir():
        if any(table for suffix in _TABLES for table in folder.rglob(f"*{suffix}")):
            return
        raise UsageError(without_splits(folder))
    if split != "train" and not any((folder / name).is_dir() for name in _EVALUATED):
        raise UsageError(
            f"{folder} has no folder 'val' or 'test': the training is evaluated on one of them"
        )


def _is_known(path: Path) -> bool:
    """Whether Ultralytics knows a name that is no path here, or may download it."""
    if path.is_absolute():
        return False
    folder: Any = settings_of_user().get("datasets_dir")
    if folder is not None and Path(folder, path).exists():
        return True
    if len(path.parts) > 1:
        return False
    if path.suffix and path.suffix not in _TABLES:
        return False
    spec = find_spec("ultralytics")
    places = (spec.submodule_search_locations or ()) if spec else ()
    names = (path.name,) if path.suffix else tuple(f"{path.name}{suffix}" for suffix in _TABLES)
    tables = [Path(place, "cfg", "datasets", name) for place in places for name in names]
    # Names without a suffix may be archives for classification that Ultralytics downloads.
    return not path.suffix or any(table.is_file() for table in tables)
