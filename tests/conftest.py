"""What all tests share."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch, and for the processes that tests start: the tests run in as many
# processes as there are cores, and threads that wait for each other's core take many times as long
# as the operations on a few numbers that they share.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A contract's failed assertion shows its values, as that of a test does.
pytest.register_assert_rewrite("rightbatch.testing")

# The first example imports torch's operators, and machines differ: no example has a deadline, and
# drawing examples may take long.
slow = [HealthCheck.too_slow]
settings.register_profile("rightbatch", deadline=None, suppress_health_check=slow)
settings.load_profile("rightbatch")


_modules_frozen = 0


def freeze_imports() -> None:
    """Leave what was imported since the last time out of every later collection of garbage.

    With the frameworks of all tests there are millions of objects, and each recovery from memory
    that ran out collects garbage: most of a second each time.
    """
    global _modules_frozen
    if len(sys.modules) >= _modules_frozen + 100:
        _modules_frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


# Folders whose tests start processes or frameworks, those with the longest files first.
LONG_FOLDERS = ("integrations", "study", "fit", "train", "tune", "elastic", "cli", "predict")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: the processes of pytest-xdist, each of which takes one file
    after the other, then end at about the same time."""

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return LONG_FOLDERS.index(folder) if folder in LONG_FOLDERS else len(LONG_FOLDERS)

    items.sort(key=place)  # which keeps the order inside a folder


def pytest_collection_finish() -> None:
    freeze_imports()


def pytest_runtest_logfinish() -> None:
    freeze_imports()


@pytest.fixture(scope="session")
def ray_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the ports of every Ray that a process of tests starts: Ray reads it once a process, and
    would make one in the user's home."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(str(uuid.uuid4()))
    return token
