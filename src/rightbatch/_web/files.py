"""The static files of a page: those shared by all pages, and its own."""

from __future__ import annotations

from pathlib import Path

KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""Media types by suffix. `mimetypes` is not used: on Windows it depends on installed programs."""

_SHARED = Path(__file__).with_name("static")


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the shared files and those of `folder`, by name.

    Raises:
        ValueError: if a name is in both.
    """
    shared, own = _read(_SHARED), _read(folder)
    if both := shared.keys() & own.keys():
        raise ValueError(f"{folder} has files of the same name as shared ones: {sorted(both)}")
    return shared | own


def media_type(name: str) -> str:
    """Return the media type of a file that `read_files` returned."""
    return KINDS[Path(name).suffix]


def _read(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in KINDS}
