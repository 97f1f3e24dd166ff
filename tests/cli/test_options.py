"""The command line and the Python verbs have the same options, with the same defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from cyclopts import App

import rightbatch as rb
from rightbatch._cli.app import app
from rightbatch._cli.options import Keywords, SpecOptions, token_from, with_options
from rightbatch._errors import UsageError
from rightbatch._serve.load.bench import bench
from rightbatch._workload.options import Help

REQUIRED = inspect.Parameter.empty
SPEC = {"data", "imgsz"}
"""Of an integration's spec: any other keyword in Python."""
MODEL = {"imgsz", "conf", "iou", "mean", "std", "threads"}
"""Of the integration that opens a served model, likewise."""
ON_COMMAND_LINE_ONLY = {
    "fit": {"json", "steps", "until"} | SPEC,  # steps, until: of rb.Command
    "run": {"json"},
    "predict": {"json", "replay", "calibrate", "device"} | SPEC,  # replay, calibrate: other verbs
    "tune": {"json", "plot", "learning_rate"} | SPEC,  # Plan.plot(), rb.Command
    "train": {"json"} | SPEC,
    # metric: one of the metrics, repeatable; learning_rate: of rb.Command
    "study": {"json", "metric", "learning_rate"} | SPEC,
    # `sources` and `latency` are positional in Python; the rest is of a server that ends by itself.
    "serve": {
        "json",
        "source",
        "latency",
        "page",
        "token_file",
        "stop_within",
        "on",
        "replicas",
        "seed",
    }
    | MODEL,
    "bench serve": {"json", "latency"} | MODEL,
}
IN_PYTHON_ONLY = {
    "fit": {"progress"},
    "run": {"progress", "stdout_to_stderr"},
    "predict": {"progress"},
    "tune": {"progress", "largest"},  # what `fit` returned
    "train": {"progress", "settings"},  # a mapping
    "study": {"progress", "settings", "metrics"},
    "serve": {"progress", "on_calibrated", "sources", "latency"},
    "bench serve": {"progress", "latency"},
}
REQUIRED_IN_PYTHON = {("predict", "batch"), ("train", "out"), ("study", "out")}
SHELL_FORM = {
    ("study", "seeds"): ("3", 3),
    ("study", "learning_rates"): ("1", (1.0,)),
    ("serve", "to"): ((), None),
}
"""Defaults that are written differently: on the command line, and in Python."""


def python(*functions: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of functions, with their defaults, but for the workload or model."""
    parameters: dict[str, Any] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind != inspect.Parameter.VAR_KEYWORD:
                parameters[name] = parameter.default
    return {n: d for n, d in parameters.items() if n not in ("workload", "model")}


VERBS = {
    "fit": python(rb.fit),
    "run": python(rb.run),
    "predict": python(rb.predict),
    "tune": python(rb.tune),
    "train": python(rb.train),
    "study": python(rb.study),
    "serve": python(rb.serve, rb.Server),
    "bench serve": python(bench),
}


def command_line(verb: str) -> dict[str, Any]:
    """A command's options as cyclopts has them, by the names of Python."""
    command: App = app
    for word in verb.split():
        command = command[word]
    found = {}
    for argument in command.assemble_argument_collection():
        option = argument.names[0]
        if option.startswith("--"):
            found[option.removeprefix("--").replace("-", "_")] = argument.field_info.default
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_the_same_options_in_python_and_on_the_command_line(verb: str) -> None:
    shared = set(VERBS[verb]) - IN_PYTHON_ONLY[verb]
    assert set(command_line(verb)) - ON_COMMAND_LINE_ONLY[verb] == shared
    assert set(VERBS[verb]) >= IN_PYTHON_ONLY[verb]
    assert set(command_line(verb)) >= ON_COMMAND_LINE_ONLY[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_has_the_same_default_in_python_and_on_the_command_line(verb: str) -> None:
    here, there = VERBS[verb], command_line(verb)
    for name in (set(here) & set(there)) - IN_PYTHON_ONLY[verb] - ON_COMMAND_LINE_ONLY[verb]:
        if (verb, name) in SHELL_FORM:
            assert (there[name], here[name]) == SHELL_FORM[verb, name]
        elif (verb, name) in REQUIRED_IN_PYTHON:
            assert here[name] is REQUIRED
            assert there[name] is not REQUIRED
        else:
            assert there[name] == here[name], name


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_help(verb: str) -> None:
    command: App = app
    for word in verb.split():
        command = command[word]
    for argument in command.assemble_argument_collection():
        assert argument.parameter.help, argument.names


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Options of all kinds."""

    quiet: Annotated[bool, Help("say less")] = False
    cache: Annotated[bool, Help("keep what was read")] = True


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """Options of all kinds."""

    memory: Annotated[int | str | None, Help("bytes, or text")] = None
    sizes: Annotated[Sequence[int], Help("several")]
    seeds: Annotated[int | Sequence[int], Help("how many, or which")] = 3
    rates: Annotated[Sequence[float], Help("several")] = (0.5, 1.0)
    out: Annotated[str | Path, Help("a folder", cli_default="runs/one")]
    settings: Annotated[Mapping[str, Any] | None, Help("a mapping", python_only=True)] = None


def heard(*words: str) -> dict[str, Any]:
    """The keywords that a command gets for what was typed."""
    got: dict[str, Any] = {}

    @with_options(Options)
    def command(*, options: Keywords) -> None:
        got.update(options)

    App(default_command=command)(words, exit_on_error=False, result_action="return_value")
    return got


def test_what_is_typed_becomes_the_values_of_the_fields() -> None:
    typed = ["--sizes", "8,16", "--seeds", "0,7", "--rates", "1e-3", "--memory", "2GiB"]
    assert heard(*typed, "--out", "there", "--quiet", "--no-cache") == {
        "sizes": [8, 16],
        "seeds": [0, 7],
        "rates": [0.001],
        "memory": "2GiB",
        "out": "there",
        "quiet": True,
        "cache": False,
    }


def test_what_is_not_typed_has_the_default_and_without_one_is_left_out() -> None:
    assert heard("--sizes", "8") == {
        "sizes": [8],
        "seeds": 3,
        "rates": [0.5, 1.0],
        "out": "runs/one",
        "quiet": False,
        "cache": True,
    }


def test_one_number_is_itself_and_one_with_a_comma_a_list() -> None:
    assert heard("--sizes", "8", "--seeds", "5")["seeds"] == 5
    assert heard("--sizes", "8", "--seeds", "5,6")["seeds"] == [5, 6]


@pytest.mark.parametrize("text", ["8;16", "8,", "x"])
def test_text_that_is_no_list_of_numbers_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--sizes takes numbers separated by commas"):
        heard("--sizes", text)


class TestTheToken:
    def test_comes_from_an_option_a_file_or_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "token"
        file.write_text("of-file\n")
        assert token_from(None, None) is None
        monkeypatch.setenv("RIGHTBATCH_TOKEN", "of-environment")
        assert token_from(None, None) == "of-environment"
        assert token_from(None, file) == "of-file"
        assert token_from("of-option", None) == "of-option"

    def test_is_refused_where_it_would_let_anyone_in(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("\n")
        for given, path in (("", None), (None, file), (None, tmp_path / "no"), ("a", file)):
            with pytest.raises(UsageError, match="token"):
                token_from(given, path)


class TestAssignments:
    """KEY=VALUE, for the arguments of an integration and for options."""

    @pytest.fixture
    def given(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def command(self, given: dict[str, Any]) -> Any:
        @with_options(Options, SpecOptions)
        def verb(workload: str, /, *, options: Keywords) -> None:
            given.update(options, workload=workload)

        return verb

    def run(self, command: Any, text: str) -> None:
        made = App(suppress_keyboard_interrupt=False, result_action="return_value")
        made.default(command)
        tokens = command.with_required(["verb", *text.split()])[1:]
        made(tokens, exit_on_error=False, print_error=False)

    def test_options_and_arguments_have_their_types(
        self, command: Any, given: dict[str, Any]
    ) -> None:
        self.run(command, "yolo26n.yaml imgsz=320 rect=True classes=[0,2] amp=bf16 sizes=8,16")
        assert given["workload"] == "yolo26n.yaml"
        assert (given["imgsz"], given["rect"], given["classes"]) == (320, True, [0, 2])
        assert (given["amp"], given["sizes"]) == ("bf16", [8, 16])

    def test_what_is_neither_is_refused(self, command: Any) -> None:
        with pytest.raises(UsageError, match="verb takes one workload and KEY=VALUE, got 'more'"):
            self.run(command, "yolo26n.yaml more sizes=8")
        with pytest.raises(UsageError, match="imgsz takes int, got 'large'"):
            self.run(command, "yolo26n.yaml imgsz=large sizes=8")
