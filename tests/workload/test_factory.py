"""Resolution of a verb's argument to a factory."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rightbatch import UsageError, Workload
from rightbatch._training.protocol import Training
from rightbatch._training.resolve import resolve
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._workload.factory import FileFactory

FILE = """\
from dataclasses import dataclass
from pathlib import Path

from neighbour import WORD

@dataclass
class Built:
    word: str
    file: str

def workload():
    return Built(WORD, __file__)

def other():
    return Built("other", __file__)

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with two factories that imports a module beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "neighbour.py").write_text("WORD = 'from the neighbour'\n")
    (folder / "train.py").write_text(FILE)
    yield folder / "train.py"
    for name in ("neighbour", "_rightbatch_train"):
        sys.modules.pop(name, None)


def test_a_callable_is_returned_unchanged() -> None:
    def factory() -> None: ...

    assert resolve(factory) == WorkloadTraining(factory)


def test_a_training_is_taken_as_it_is() -> None:
    class Own(Training):
        integration = "own"
        abilities = frozenset()

    given = Own()
    assert resolve(given) is given


@pytest.mark.parametrize("as_text", [str, lambda path: path])
def test_a_function_in_a_file_can_import_modules_beside_it(
    file: Path, as_text: Callable[[Path], Any]
) -> None:
    built = resolve(as_text(Path(f"{file}:workload"))).factory()
    assert built.word == "from the neighbour"
    assert Path(built.file) == file
    assert resolve(f"{file}:other").factory().word == "other"


def test_a_file_is_found_from_the_working_directory_and_after_pickling(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    training = resolve("train.py:workload")
    assert training == WorkloadTraining(FileFactory(file.resolve(), "workload"))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(training)).factory().word == "from the neighbour"


def test_resolving_a_file_does_not_run_it(file: Path) -> None:
    file.write_text("raise RuntimeError('ran')\n")
    training = resolve(f"{file}:workload")
    with pytest.raises(RuntimeError, match="ran"):
        training.load()


def test_an_unknown_function_raises_an_error_with_the_functions_of_the_file(file: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.py has no function 'worload'") as caught:
        resolve(f"{file}:worload").load()
    listed = str(caught.value).split("it has ")[1].split(", ")
    assert sorted(listed) == ["Built", "other", "workload"], "its own, not what it imported"


def test_an_attribute_that_is_not_callable_raises_an_error(file: Path) -> None:
    with pytest.raises(UsageError, match="no function 'NUMBER'"):
        resolve(f"{file}:NUMBER").load()


def test_a_missing_file_raises_an_error_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*none\.py in ") as caught:
        resolve(f"{tmp_path / 'none.py'}:workload")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("spec", ["unheard-of", "some:thing", "", "model.onnx"])
def test_an_unknown_spec_raises_an_error_with_the_installed_integrations(spec: str) -> None:
    with pytest.raises(UsageError, match=r"neither file\.py:function nor .*installed: ") as caught:
        resolve(spec)
    assert "ultralytics" in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_a_file_without_a_function_raises_an_error_with_the_syntax() -> None:
    with pytest.raises(UsageError, match=r"did you mean train\.py:FUNCTION\?"):
        resolve("train.py")


def test_unused_options_raise_an_error(file: Path) -> None:
    with pytest.raises(UsageError, match="takes no options, got data, imgsz"):
        resolve(lambda: None, imgsz=64, data="x.yaml")
    with pytest.raises(UsageError, match="takes no options, got imgsz"):
        resolve(f"{file}:workload", imgsz=64)


def test_a_built_workload_raises_an_error_with_the_reason() -> None:
    model = nn.Linear(1, 1)
    built = Workload(
        model=model,
        loss=lambda model, batch: model(batch).sum(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=[torch.zeros(1)],
    )
    for given in (built, 3, None, ["train.py:workload"]):
        with pytest.raises(UsageError, match=f"builds it.*got {type(given).__name__}"):
            resolve(given)


ARGUMENTS = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, {})
width = parser.parse_args().width

def workload():
    return width
"""


def test_a_file_that_parses_arguments_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verbs that run in the process of the command line have arguments of their own."""
    arguments = ["rightbatch", "train", "file.py:workload", "--width", "9"]
    monkeypatch.setattr(sys, "argv", arguments)
    file = tmp_path / "arguments.py"
    file.write_text(ARGUMENTS.format("default=3"))
    assert FileFactory(file, "workload")() == 3
    assert sys.argv == arguments


def test_a_file_that_ends_the_process_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "arguments.py"
    file.write_text(ARGUMENTS.format("required=True"))
    with pytest.raises(UsageError, match=r"arguments.py ended the process.*2.*defaults.*__main__"):
        FileFactory(file, "workload")()


def test_a_file_in_a_package_imports_relatively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "projectx" / "inner"
    folder.mkdir(parents=True)
    for each in (folder, folder.parent):
        (each / "__init__.py").touch()
    (folder.parent / "nets.py").write_text("WORD = 'above'\n")
    (folder / "beside.py").write_text("WORD = 'beside'\n")
    (folder / "train.py").write_text(
        "from ..nets import WORD\nfrom .beside import WORD as OTHER\n"
        "def workload():\n    return WORD, OTHER\n"
    )
    assert FileFactory(folder / "train.py", "workload")() == ("above", "beside")
