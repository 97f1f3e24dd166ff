"""The package's door: what is public, and which packages are imported where."""

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

# What takes long to import, or comes with an extra.
HEAVY = (
    *("torch", "numpy", "ultralytics", "cv2", "transformers", "lightning"),
    *("av", "fastapi", "onnxruntime", "paho", "PIL", "prometheus_client", "ray", "uvicorn"),
    *("curvlinops", "jinja2", "mlflow", "optuna", "pandas", "plotly", "scipy", "starlette"),
)
EVERYWHERE = {"torch", "rightbatch", "__future__"} | sys.stdlib_module_names
# A framework is imported in its integration and nowhere else, any other package in the rooms whose
# work it does. The examples show frameworks as a user has them.
HOMES = {
    "PIL": (
        "_serve/snapshots.py",
        "_serve/sources/",
        "_serve/web/",
        "integrations/_yolo_outputs.py",
    ),
    "accelerate": ("integrations/accelerate.py",),
    "av": ("_serve/sources/",),
    "cloudpickle": (
        "_serve/sources/",
        "_worker/",
        "_workload/loader.py",
        "integrations/ultralytics/",
        "testing/",
    ),
    "curvlinops": ("_study/runs/",),
    "cv2": ("examples/", "integrations/_pixels.py", "integrations/ultralytics/"),
    "cyclopts": ("_cli/",),
    "fastapi": ("_serve/web/",),
    "filelock": ("_study/",),
    "h11": ("_web/",),
    "jinja2": ("_study/web/",),
    "lightning": ("integrations/lightning/",),
    "mlflow": ("_run/mlflow_run.py", "_study/store/"),
    "numpy": (
        "_device/",
        "_serve/",
        "_study/",
        "_training/checkpoint.py",
        "examples/",
        "integrations/",
        "testing/",
    ),
    "onnxruntime": ("integrations/_onnx_runtime.py",),
    "optuna": ("_study/",),
    "paho": ("_serve/sinks/",),
    "pandas": ("_study/",),
    "pillow_heif": ("_serve/sources/decoding.py",),
    "plotly": ("_predict/", "_study/", "_tune/"),
    "prometheus_client": ("_serve/web/",),
    "psutil": ("_device/", "integrations/_onnx_runtime.py", "integrations/command/"),
    "pynvml": ("_device/", "integrations/ray/"),
    "pytest": ("testing/",),
    "pytorch_lightning": ("integrations/lightning/",),
    "ray": ("integrations/ray/",),
    "rich": ("_cli/", "_progress.py", "examples/"),
    "scipy": ("_study/runs/",),
    "sklearn": ("examples/digits.py",),
    "sqlalchemy": ("_study/store/",),
    "starlette": ("_serve/web/", "_study/web/", "integrations/ray/"),
    "transformers": ("integrations/transformers/",),
    "ultralytics": ("examples/demo.py", "integrations/ultralytics/"),
    "uvicorn": ("_web/",),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Top-level packages that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


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


def test_a_package_is_imported_only_where_it_belongs() -> None:
    away = [
        f"{relative(path)} imports {name}"
        for path in MODULES
        for name in imports(path)
        if name not in EVERYWHERE and not relative(path).startswith(HOMES.get(name, ()))
    ]
    assert not away, "\n".join(away)


def test_every_home_of_a_package_is_one() -> None:
    used = [(name, relative(path)) for path in MODULES for name in imports(path)]
    empty = [
        (package, home)
        for package, homes in HOMES.items()
        for home in homes
        if not any(name == package and path.startswith(home) for name, path in used)
    ]
    assert not empty, "no longer imported there"
