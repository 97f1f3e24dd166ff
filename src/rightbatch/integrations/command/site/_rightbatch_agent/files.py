"""Protects files of the user's: a trial ends before it changes, replaces or removes one.

Python reports each open, rename and removal to audit hooks. Writers in native code are not seen,
except `torch.save`, safetensors and SQLite (`native_writers`), which are checked as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from . import made
from .settings import Settings

_IGNORED = ("__pycache__", f"{os.sep}.cache{os.sep}", ".lock")
_CACHE = ".cache"  # the end of a data set's cache, which Ultralytics and others write anew
_DEVICES = ("/dev/", "/proc/", "/sys/")
_WRITES = os.O_WRONLY | os.O_RDWR


class Guard:
    """Knows which files existed before the trial, and ends it if one is to be changed.

    Files that an earlier trial of the same search has made are no files of the user's.
    """

    def __init__(self, settings: Settings) -> None:
        self._started_at = settings.started_at
        allowed = tuple(os.path.realpath(folder) + os.sep for folder in settings.folders)
        self._allowed = (*allowed, *_DEVICES)
        self._is_checking = False
        self._made = made.Made(settings.made)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at an audit event; those that change no file return at once."""
        if event == "open":
            path, mode, flags = arguments
            if flags & _WRITES if isinstance(flags, int) else "w" in (mode or ""):
                self.check(path, is_file=True)
        elif event == "os.rename":
            self.check(arguments[0])
            self.check(arguments[1], temporary=arguments[0])
        elif event in ("os.link", "os.symlink"):
            self.check(arguments[1])
        elif event in ("os.remove", "os.truncate"):
            if event == "os.truncate" or arguments[1] in (-1, None):  # else relative to a folder
                self.check(arguments[0])
        elif event == "shutil.rmtree":
            self.check(arguments[0])

    def check(self, path: Any, *, is_file: bool = False, temporary: Any = None) -> None:
        """End the trial if the file, or one in the folder, existed before it began.

        Who opens a folder as a file makes a temporary file in it, which has no name. The
        `temporary` file that was to replace it is removed, since nothing of the script runs after.
        """
        if self._is_checking or not isinstance(path, (str, bytes, os.PathLike)):
            return
        self._is_checking = True
        try:
            name = os.path.realpath(os.fsdecode(path))
            if self._is_ignored(name) or (is_file and os.path.isdir(name)):
                return
            if not os.path.exists(name) or self._is_of_a_trial(name):
                self._made.add(name)
                return
            found = next(filter(self._is_of_the_user, _files_at(name)), None)
            if found is not None:
                from .connection import report

                self._remove_own(temporary)
                report(event="would_overwrite", path=found)
                os._exit(1)
        except OSError:
            return  # it does not exist
        finally:
            self._is_checking = False

    def is_of_the_user(self, path: Any) -> bool:
        """Whether a trial would end before it changes this file."""
        try:
            name = os.path.realpath(os.fsdecode(path))
            return not self._is_ignored(name) and self._is_of_the_user(name)
        except (OSError, TypeError, ValueError):
            return False

    def _is_ignored(self, name: str) -> bool:
        is_cache = name.endswith(_CACHE) or any(part in name for part in _IGNORED)
        return is_cache or (name + os.sep).startswith(self._allowed)

    def _is_of_the_user(self, name: str) -> bool:
        return self._is_older(name) and name not in self._made

    def _is_of_a_trial(self, name: str) -> bool:
        return self._is_older(name) and name in self._made

    def _remove_own(self, path: Any) -> None:
        """Remove a file that the trial has made."""
        try:
            if os.path.isfile(path) and not self._is_older(path):
                os.remove(path)
        except (OSError, TypeError):
            pass

    def _is_older(self, name: str) -> bool:
        # Any change sets a file's ctime, so one that the trial has made itself is newer.
        return os.path.isfile(name) and os.stat(name).st_ctime < self._started_at


def _files_at(name: str) -> Iterator[str]:
    """Yield the file, or those in the folder."""
    if not os.path.isdir(name):
        yield name
        return
    for at, _, names in os.walk(name):
        for each in names:
            yield os.path.join(at, each)


def protect(settings: Settings) -> Guard:
    """Install the guard; it cannot be removed."""
    guard = Guard(settings)
    sys.addaudithook(guard.on_event)
    return guard
