"""The package's door and its floors: what may be imported where, and what is not imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rightbatch

ROOT = Path(rightbatch.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    1: {
        "_device",
        "_errors",
        "_faults",
        "_progress",
        "_random",
        "_targets",
        "_units",
        "_updates",
        "_web",
    },
    2: {"_batch", "_norm", "_workload", "_factory", "_worst", "_precision", "_session", "_probe"},
    3: {"_memory", "_noise", "_throughput", "_scaling", "_pilot"},
    4: {
        "_search",
        "_nothing_fits",
        "_fit",
        "_predict",
        "_tune",
    },
    5: {
        "_elastic",
        "_checkpoint",
        "_processes",
        "_epoch",
        "_evaluation",
        "_growth",
        "_loop",
        "_serve",
        "_study",
        "_train",
    },
    6: {"_cli", "integrations", "examples", "testing", "__main__"},
}
# What takes long to import, or comes with an extra.
HEAVY = (
    *("torch", "numpy", "ultralytics", "cv2", "transformers", "lightning"),
    *("av", "fastapi", "onnxruntime", "paho", "PIL", "prometheus_client", "ray", "uvicorn"),
    *("curvlinops", "jinja2", "mlflow", "optuna", "pandas", "plotly", "scipy", "starlette"),
)
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
# The probe's process opens a session and asks for a need only once it runs.
LAZY_EXCEPTIONS = {
    "_probe/__main__.py": {"_session", "_memory", "_pilot"},
    "_probe/_inside.py": {"_session"},
}
# A framework is imported in its integration and nowhere else, what an extra brings in the module
# whose job it is.
AT_HOME = {
    "PIL": (
        "_serve/web/images.py",
        "_serve/pipeline.py",
        "_serve/sources/pictures.py",
        "integrations/",
    ),
    "av": ("_serve/sources/video.py",),
    "fastapi": ("_serve/web/http.py",),
    "curvlinops": ("_study/curvature.py",),
    "jinja2": ("_study/web/template.py",),
    "mlflow": ("_study/",),
    "numpy": ("_random.py", "_serve/", "_study/", "examples/", "integrations/", "testing/"),
    "onnxruntime": ("integrations/",),
    "optuna": ("_study/trials.py",),
    "pandas": ("_study/result.py",),
    "paho": ("_serve/sinks/mqtt.py",),
    "prometheus_client": ("_serve/web/metrics.py",),
    "ray": ("integrations/",),
    "scipy": ("_study/curvature.py",),
    "sklearn": ("examples/digits.py",),
    "starlette": (
        "_serve/web/bodies.py",
        "_serve/web/http.py",
        "_serve/web/predict.py",
        "_study/web/",
        "integrations/ray.py",
    ),
    "uvicorn": ("_web/listening.py",),
    "ultralytics": ("integrations/", "examples/demo.py"),
    "cv2": ("examples/", "integrations/"),
    "lightning": ("integrations/",),
    "pytorch_lightning": ("integrations/",),
    "transformers": ("integrations/",),
    "accelerate": ("integrations/",),
    "torchvision": ("integrations/",),
    "plotly": ("_memory/plot.py", "_study/figures.py", "_study/web/template.py", "_tune/plot.py"),
    "pytest": ("testing/",),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names that a module imports, and whether it does so when it is imported itself.

    What is imported for type checkers alone is left out.
    """

    def visit(node: ast.AST, *, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: imports are absolute"
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once=at_once and not is_function)

    yield from visit(ast.parse(path.read_text()), at_once=True)


def own_imports(path: Path) -> set[tuple[str, bool]]:
    """Top-level names inside the package, such as `_batch`."""
    found = set()
    for name, at_once in imports(path):
        package, _, rest = name.partition(".")
        first = rest.partition(".")[0]
        if package == "rightbatch":
            found.add((first if first in FLOOR_OF else "", at_once))
    return found


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_all_is_sorted_and_says_no_name_twice() -> None:
    assert rightbatch.__all__ == sorted(rightbatch.__all__)
    assert len(set(rightbatch.__all__)) == len(rightbatch.__all__)


def test_every_public_name_can_be_had() -> None:
    for name in rightbatch.__all__:
        assert getattr(rightbatch, name).__name__ == name
    assert dir(rightbatch) == rightbatch.__all__


def test_all_is_complete() -> None:
    """Every name that the door imports, for itself or for type checkers, is public."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rightbatch.")
        for alias in node.names
    }
    assert imported == set(rightbatch.__all__)
    assert set(rightbatch._LAZY) <= imported


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'rightbatch' has no attribute 'tuen'"):
        rightbatch.tuen  # noqa: B018


def test_importing_it_or_its_command_line_brings_no_torch_and_no_framework() -> None:
    heavy = (*HEAVY, "cloudpickle")
    code = f"""
import sys
import rightbatch
before = {{name.partition(".")[0] for name in sys.modules}}
assert not before & {{*{heavy}, "rich", "cyclopts"}}, before
import rightbatch._cli.app, rightbatch._workload.factory, rightbatch._training.updates
import rightbatch.examples
from rightbatch import NothingFitsError, UsageError
import rightbatch.integrations.ultralytics
after = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(after & {{*{heavy[:-1]}}}))
"""
    assert python(code).strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_framework_is_imported_only_where_it_belongs(path: Path) -> None:
    for name, _ in imports(path):
        homes = AT_HOME.get(name.partition(".")[0])
        if homes is not None:
            assert relative(path).startswith(homes), f"{name} in {relative(path)}"


def test_every_module_is_on_a_floor() -> None:
    tops = {relative(path).partition("/")[0].removesuffix(".py") for path in MODULES}
    assert tops - {"__init__"} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_down_the_floors_only(path: Path) -> None:
    top = relative(path).partition("/")[0].removesuffix(".py")
    if top == "__init__":
        return  # the door stands beside the floors
    allowed = LAZY_EXCEPTIONS.get(relative(path), set())
    for name, at_once in own_imports(path):
        if name == top or (name in allowed and not at_once):
            continue
        if name == "":  # the package itself: its version
            assert FLOOR_OF[top] == 6
            continue
        assert FLOOR_OF[name] <= FLOOR_OF[top], f"{relative(path)} imports {name}"


def test_modules_of_a_floor_do_not_import_each_other_in_circles() -> None:
    below: dict[str, set[str]] = {}
    for path in MODULES:
        module = relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        below[module] = {
            name.removeprefix("rightbatch.").rpartition(".")[0] or name.removeprefix("rightbatch.")
            for name, at_once in imports(path)
            if at_once and name.startswith("rightbatch.")
        }
    done: set[str] = set()

    def visit(module: str, on_the_way: tuple[str, ...]) -> None:
        assert module not in on_the_way, " -> ".join((*on_the_way, module))
        if module in done or module not in below:
            return
        for other in below[module]:
            if other != module:
                visit(other, (*on_the_way, module))
        done.add(module)

    for module in below:
        visit(module, ())
