"""What README.md and docs/*.md show: the code runs as it stands, and every command is one."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from cyclopts.exceptions import MissingArgumentError

import rightbatch
from snippets import ROOT, blocks, commands, files, mentions, pages

README = ROOT / "README.md"
SCRIPTS = files(README) | files(ROOT / "docs" / "noise-scale.md")
PLACEHOLDERS = {"N": "1", "…": "1"}
"""What stands for a value that the reader gives."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all scripts of the README, in which they can import each other."""
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in SCRIPTS:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    return tmp_path


def rightbatch_in(folder: Path, *arguments: str) -> str:
    """What a command prints on stdout; it has to end well."""
    done = subprocess.run(
        [sys.executable, "-m", "rightbatch", *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 220


# -- the code


def test_the_scripts_are_those_that_the_readme_names() -> None:
    assert set(SCRIPTS) == {"train.py", "loop.py", "noise.py", "serve.py"}


@pytest.mark.slow
def test_the_workload_finds_its_batch_size_and_says_so_as_shown(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path("train.py", run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("batch size 64: peak ")
    words = without_figures(printed[0])
    assert words == without_figures(shown_output("fit")[0]) != ""


def without_figures(line: str) -> str:
    """The words of a line: no numbers, and no device."""
    return re.sub(r"\d[\d.]*( [KMG]iB)?", "N", line.rpartition(" on ")[0])


def test_elastic_trains_in_a_loop(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path("loop.py")
    assert found["report"].count == 2000 % 256, "the last batch of the epoch, whole"
    assert "StepReport" in capsys.readouterr().out


def test_the_noise_scale_is_told_in_a_loop(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path("noise.py")
    assert str(found["noise"].estimate).startswith("noise scale")
    assert "noise scale" in capsys.readouterr().out


def test_a_function_is_served(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path("serve.py", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50, "a film loses no frame"
    assert '"source": "belt", "frame": 49' in lines[-1]


def test_every_other_python_block_is_python() -> None:
    for path in pages():
        for block in blocks(path, "python"):
            top = "async def main():\n" + re.sub("^", "    ", block.text, flags=re.MULTILINE)
            compile(top, str(block), "exec")  # `await` is right at the top of what is shown


def test_names_of_rightbatch_that_are_shown_exist() -> None:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\brb\.(\w+)", text):
            assert name in rightbatch.__all__, f"{path.name} shows rb.{name}"


# -- the commands


def door() -> Any:
    """The module of the `rightbatch` command."""
    (script,) = entry_points(group="console_scripts", name="rightbatch")
    return sys.modules[script.load().__module__]


def command_line() -> Any:
    """The application that the `rightbatch` command runs."""
    return door().app


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_every_command_is_one_that_rightbatch_takes(path: Path) -> None:
    for arguments in commands(path):
        joined = door().join_command(arguments)
        command_line().parse_args(joined, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_commands_in_the_text_have_options_that_exist(path: Path) -> None:
    for arguments in mentions(path):
        words = [PLACEHOLDERS.get(word, word) for word in arguments]
        if len(words) > 1:
            parse_the_rest(words)
        else:
            assert words[0] in command_line(), f"no verb: {words}"


def parse_the_rest(words: list[str]) -> None:
    """Parse a command, with a number for each required option that it leaves out."""
    given = door().join_command(list(words))
    while True:
        try:
            command_line().parse_args(given, exit_on_error=False, print_error=False)
        except MissingArgumentError as error:
            missing = error.argument.name
            assert missing not in given, f"{missing} of {words} has no value"
            given += [missing, "1"]
        else:
            return


def test_the_readme_shows_every_verb() -> None:
    shown = {arguments[0] for arguments in [*commands(README), *mentions(README)]}
    verbs = {name for name in command_line() if not name.startswith("-")}
    assert shown == verbs


def shown_output(start: str) -> list[str]:
    """What the README shows below the first command that starts so."""
    for block in blocks(README, "console"):
        lines = block.text.splitlines()
        for number, line in enumerate(lines):
            if line.startswith(f"$ rightbatch {start}"):
                below = lines[number + 1 :]
                ends = [n for n, other in enumerate(below) if other.startswith("$ ")]
                return below[: ends[0]] if ends else below
    raise AssertionError(f"README.md has no command {start!r}")


def test_the_prediction_is_printed_as_it_is_shown(place: Path) -> None:
    predict = next(words for words in commands(README) if words[0] == "predict")
    printed = rightbatch_in(place, *predict)
    lines = [line.removesuffix("…").strip() for line in shown_output("predict")]
    assert len(lines) > 3
    for line in lines:  # no figure depends on the machine
        assert line in printed


def test_a_training_is_resumed(place: Path) -> None:
    first, again = [words for words in commands(README) if words[0] == "train"][:2]
    assert "64 updates" in rightbatch_in(place, *first)
    assert "64 updates" in rightbatch_in(place, *again)
    assert (place / "runs" / "one" / "model.pt").exists()


# -- the links


def without_code(path: Path) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = without_code(path)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name} links to {target}"
        if anchor and there.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", without_code(there), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{path.name} links to {target}"
