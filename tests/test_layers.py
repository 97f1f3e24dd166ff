"""The layers of the package: every import goes down, and no files import each other in a circle.

The imports are read from the source, so those inside functions and those for type checkers alone
count as well: a reader has to follow them too.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import rightbatch

ROOT = Path(rightbatch.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

# Lowest first. Entries of one layer may import each other, unless that makes a circle of files.
LAYERS = (
    ("_errors", "_units", "_progress", "_faults", "_json", "_web"),
    ("_device",),
    ("_workload",),
    ("_noise",),
    ("_elastic",),
    ("_worker",),
    ("_training",),
    ("_predict",),
    ("_check",),
    ("_fit",),
    ("_run",),
    ("_tune",),
    ("_train",),
    ("_study",),
    ("_serve",),
    ("testing",),
    ("integrations",),
    ("examples",),
    ("_cli",),
    ("__main__",),
)
LAYER = {entry: number for number, layer in enumerate(LAYERS) for entry in layer}

# The door names what is public; it is imported by nobody but the command line, for the version.
DOOR = "__init__.py"

# Imports upward and circles of files that are still here, to be removed. Only shorten these lists:
# a line that is no longer needed fails `test_nothing_is_allowed_that_no_longer_happens`.


def entry(file: str) -> str:
    """The file's entry in the package's root: a package, or a module without its ending."""
    return file.partition("/")[0].removesuffix(".py")


def file_of(dotted: str) -> str | None:
    """The file behind a dotted name such as `rightbatch._fit.search`; None for other packages."""
    top, *parts = dotted.split(".")
    if top != "rightbatch":
        return None
    while parts:
        for candidate in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])):
            if candidate in FILES:
                return candidate
        parts.pop()  # the last part is a name inside a module
    return DOOR


def absolute(node: ast.ImportFrom, file: str) -> str:
    """The module that a `from` import names, with a relative one made absolute."""
    if node.level == 0:
        assert node.module is not None
        return node.module
    package = ["rightbatch", *file.split("/")[:-1]]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def imported_files(file: str, source: str) -> Iterator[str]:
    """Files of this package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{absolute(node, file)}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            target = file_of(name)
            if target is not None and target != file:
                yield target


GRAPH = {file: set(imported_files(file, path.read_text("utf-8"))) for file, path in FILES.items()}


def upward(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports of a file in a higher layer, as (importing file, imported file)."""
    return {
        (file, target)
        for file, targets in graph.items()
        if file != DOOR
        for target in targets
        if target != DOOR and LAYER[entry(target)] > LAYER[entry(file)]
    }


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of files each of which imports every other, directly or through others.

    These are the strongly connected components of more than one file (Kosaraju's algorithm).
    """
    order: list[str] = []
    seen: set[str] = set()

    def visit(file: str, edges: dict[str, set[str]], found: list[str]) -> None:
        seen.add(file)
        for target in sorted(edges.get(file, ())):
            if target not in seen:
                visit(target, edges, found)
        found.append(file)

    for file in graph:
        if file not in seen:
            visit(file, graph, order)
    reverse: dict[str, set[str]] = defaultdict(set)
    for file, targets in graph.items():
        for target in targets:
            reverse[target].add(file)
    seen.clear()
    groups = set()
    for file in reversed(order):
        if file not in seen:
            group: list[str] = []
            visit(file, reverse, group)
            groups.add(frozenset(group))
    return {group for group in groups if len(group) > 1}


def test_every_entry_of_the_package_has_a_layer() -> None:
    assert {entry(file) for file in FILES if file != DOOR} == set(LAYER)


def test_no_import_goes_upward() -> None:
    found = sorted(upward(GRAPH))
    assert not found, "\n".join(f"{file} imports {target}" for file, target in found)


def test_no_files_import_each_other_in_a_circle() -> None:
    found = [sorted(group) for group in circles(GRAPH)]
    assert not found, "\n".join(" <-> ".join(group) for group in sorted(found))


def test_only_the_top_imports_the_door() -> None:
    """A file that imports `rightbatch` itself reaches every layer through it."""
    found = [file for file, targets in GRAPH.items() if DOOR in targets and file != "__main__.py"]
    assert {entry(file) for file in found} <= {"_cli", "examples"}, found


def test_a_circle_and_an_import_upward_are_found() -> None:
    graph = {
        "_fit/a.py": {"_fit/b.py"},
        "_fit/b.py": {"_fit/c.py", "_units.py"},
        "_fit/c.py": {"_fit/a.py"},
        "_units.py": {"_device/base.py"},
        "_device/base.py": set(),
    }
    assert circles(graph) == {frozenset({"_fit/a.py", "_fit/b.py", "_fit/c.py"})}
    assert upward(graph) == {("_units.py", "_device/base.py")}


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
from typing import TYPE_CHECKING
import rightbatch._units
from rightbatch import _errors
from . import search
from .search import fits
if TYPE_CHECKING:
    from rightbatch._device.base import Device
def later():
    from rightbatch._workload import batch, no_such_module
    import torch
"""
    assert set(imported_files("_fit/fit.py", source)) == {
        "_units.py",
        "_errors.py",
        "_fit/search.py",
        "_device/base.py",
        "_workload/batch.py",
        "_workload/__init__.py",
    }
