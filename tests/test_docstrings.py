"""Examples in docstrings do what they show.

pytest's `--doctest-modules` would import every module of the package, and with them every
framework, in each process that collects tests; here it is those that have examples.
"""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import rightbatch

ROOT = Path(rightbatch.__file__).parent
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_the_examples_of_a_docstring_do_what_they_show(file: str) -> None:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        module = import_module(f"rightbatch.{name}")
    except ImportError as error:
        pytest.skip(f"an extra is not installed: {error}")
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_such_examples() -> None:
    assert len(WITH_EXAMPLES) > 5
