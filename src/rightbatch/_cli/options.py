"""Options of the command line, made from the dataclasses that declare them.

A field becomes `--field` with its help and default. On the command line a memory size, `auto`, and
numbers separated by commas are text.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from rightbatch._errors import UsageError
from rightbatch._workload.options import SAME, Help, own_first

Workload = Annotated[
    str,
    Parameter(help="file.py:function, yolo26n.yaml with --data, or -- COMMAND with {batch} in it"),
]
WatchedCommand = Annotated[str, Parameter(help="-- and the command as you start it")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="one JSON document on stdout")]
Model = Annotated[
    str, Parameter(help="yolo26n.onnx, yolo26n.pt, or file.py:function (list of images -> results)")
]
Latency = Annotated[str, Parameter(help="the target, from a frame's capture to its result")]
TokenFile = Annotated[
    Path | None, Parameter(help="a file with the token; by default RIGHTBATCH_TOKEN has it")
]
_NORMALIZED = "by channel, of images from 0 to 1; for .onnx of unknown origin"
TOKEN_VARIABLE = "RIGHTBATCH_TOKEN"
Keywords = dict[str, Any]
"""Options by their Python names, without those that have no value."""


@dataclass(frozen=True, kw_only=True)
class SpecOptions:
    """Options of a model given by name, which its integration reads."""

    data: Annotated[str | Path | None, Help("data set file, for a model given by name")] = None
    imgsz: Annotated[int | None, Help("image size in pixels, for a model given by name")] = None


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """Options of a command, for its trials."""

    steps: Annotated[int | None, Help("steps of a trial, for a command")] = None
    until: Annotated[
        str | None, Help("'evaluation': a trial of a command also reaches an evaluation")
    ] = None


@dataclass(frozen=True, kw_only=True)
class RateOptions:
    """The learning rate of a command."""

    learning_rate: Annotated[
        float | None,
        Help("for {learning_rate} in a command: the one for the base batch; default: its own"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of a served model, which its integration reads."""

    imgsz: Annotated[int | None, Help("image size in pixels, for a model given by name")] = None
    conf: Annotated[float | None, Help("lowest confidence of a detection")] = None
    iou: Annotated[float | None, Help("IoU threshold for non-maximum suppression")] = None
    mean: Annotated[tuple[float, float, float] | None, Help(f"mean {_NORMALIZED}")] = None
    std: Annotated[tuple[float, float, float] | None, Help(f"deviation {_NORMALIZED}")] = None
    threads: Annotated[int | None, Help("CPU threads of the model")] = None


def token_from(given: str | None, file: Path | None) -> str | None:
    """Return the token of `--token`, `--token-file` or the environment.

    Raises:
        UsageError: if it is given twice, is empty, or the file cannot be read.
    """
    if given is not None and file is not None:
        raise UsageError("give --token or --token-file, not both")
    token, place = given, "--token"
    if file is not None:
        place = str(file)
        try:
            token = file.expanduser().read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the token from {file}: {error}") from None
    elif token is None:
        token, place = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if token is not None and (not token.strip() or not token.isascii() or not token.isprintable()):
        raise UsageError(f"the token of {place} is empty or has characters that are not ASCII")
    return token


def with_options(*groups: type) -> Callable[[Callable[..., None]], Command]:
    """Add the fields of `groups` to a command; it gets their values as its argument `options`."""
    return lambda function: Command(function, groups)


Settings = Annotated[
    str,
    Parameter(help="KEY=VALUE of the framework's trainer or of an option: imgsz=320 rect=True"),
]
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class Command:
    """A command for cyclopts. Its options are made on first use: `rightbatch --help` needs none.

    A command with the options of a spec also takes KEY=VALUE for every argument of the
    integration, as Ultralytics' own command line does.
    """

    def __init__(self, function: Callable[..., None], groups: tuple[type, ...]) -> None:
        self._function, self._groups = function, groups
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        """Run the command with the `keywords` from the command line."""
        given = self._assigned(arguments[1:])
        options = {}
        for name, option in self._options.items():
            typed = keywords.pop(name, option.parameter.default)
            if name in given:
                typed = option.from_text(given.pop(name))
            if typed is not None:
                options[name] = option.value(typed)
        options |= {name: literal(text) for name, text in given.items()}
        self._function(*arguments[:1], options=options, **keywords)

    def with_required(self, tokens: list[str]) -> list[str]:
        """Return the tokens with `epochs=3` as `--epochs=3`, for options without a default."""
        parameters = self.__signature__.parameters.values()
        names = {p.name for p in parameters if p.default is inspect.Parameter.empty}
        flags = {f"--{p.name.replace('_', '-')}" for p in parameters if _is_flag(p)}
        found = []
        for before, token in zip(["", *tokens], tokens, strict=False):
            match = _ASSIGNMENT.fullmatch(token)
            is_value = before.startswith("--") and "=" not in before and before not in flags
            required = match is not None and match[1] in names and not is_value
            found.append(f"--{token}" if required else token)
        return found

    def _assigned(self, tokens: Sequence[str]) -> dict[str, str]:
        """Return the text of every KEY=VALUE.

        Raises:
            UsageError: for another argument.
        """
        found = {}
        for token in tokens:
            if (match := _ASSIGNMENT.fullmatch(token)) is None:
                raise UsageError(f"{self.__name__} takes one workload and KEY=VALUE, got {token!r}")
            found[match[1]] = match[2]
        return found

    @cached_property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(self._function)
        types = get_type_hints(self._function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in own.parameters.items():
            if name == "options":
                if SpecOptions in self._groups:
                    kind = inspect.Parameter.VAR_POSITIONAL
                    parameters.append(inspect.Parameter("settings", kind, annotation=Settings))
                parameters += [option.parameter for option in self._options.values()]
            else:
                parameters.append(parameter.replace(annotation=types[name]))
        return own.replace(parameters=parameters)

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        parameters = self.__signature__.parameters
        return {name: parameter.annotation for name, parameter in parameters.items()}

    @cached_property
    def _options(self) -> dict[str, Option]:
        return {option.name: option for group in self._groups for option in options_of(group)}


@dataclass(frozen=True)
class Option:
    """A field on the command line; `value` converts its argument."""

    name: str
    parameter: inspect.Parameter
    value: Callable[[Any], Any]

    def from_text(self, text: str) -> Any:
        """Return what `value` takes, of the text of NAME=TEXT.

        Raises:
            UsageError: if the text is not of the option's type.
        """
        kind = get_args(self.parameter.annotation)[0]
        kinds = set(get_args(kind) if _is_union(kind) else (kind,)) - {type(None)}
        if kinds & {str, Path}:
            return text
        parsed = literal(text)
        if kinds == {float} and type(parsed) is int:
            parsed = float(parsed)
        if type(parsed) not in kinds:
            names = " or ".join(sorted(each.__name__ for each in kinds))
            raise UsageError(f"{self.name} takes {names}, got {text!r}")
        return parsed


def literal(text: str) -> Any:
    """Return the value of a setting's text: a number, a list, None, True, False, or the text.

    >>> literal("0.5"), literal("true"), literal("[0, 2]"), literal("SGD")
    (0.5, True, [0, 2], 'SGD')
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def options_of(group: type) -> list[Option]:
    """Return the options of a dataclass' fields, without those that are `python_only`."""
    types = get_type_hints(group, include_extras=True)
    found = []
    for field in own_first(group):
        kind, help = get_args(types[field.name])
        if not help.python_only:
            default = field.default if help.cli_default is SAME else help.cli_default
            found.append(_option(field.name, kind, help, default))
    return found


def _is_flag(parameter: inspect.Parameter) -> bool:
    return bool in get_args(parameter.annotation)


def _option(name: str, kind: Any, help: Help, default: Any) -> Option:
    typed, value = _typed(name, kind) if help.cli_type is None else (help.cli_type, _same)
    if default is MISSING:
        default = inspect.Parameter.empty
    elif default is None and typed in (int, float):
        typed = typed | None  # pydantic, where it is imported, checks defaults as well
    elif typed is str and not isinstance(default, str):
        numbers = default if isinstance(default, Sequence) else [default]
        default = ",".join(f"{number:g}" for number in numbers)
    elif typed is Path:
        default = Path(default)
    # Only an option that is on by default needs --no-option.
    negative = None if default is True else ""
    parameter = inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[
            typed,
            Parameter(
                name=f"--{help.cli_name}" if help.cli_name else None,
                help=help.text,
                negative=negative,
            ),
        ],
    )
    return Option(name, parameter, value)


def _typed(name: str, kind: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the type of a field's argument, and a function that converts it."""
    members = set(get_args(kind)) if _is_union(kind) else {kind}
    none = members & {type(None)}
    lists = [member for member in members if get_origin(member) is Sequence]
    if lists:
        ((number,),) = map(get_args, lists)
        return str, lambda text: _numbers(name, text, number, or_one=number in members)
    if Path in members:
        return Union[(Path, *none)], str
    if str in members:
        return Union[(str, *none)], _same
    return kind, _same


def _same(value: Any) -> Any:
    return value


def _is_union(kind: Any) -> bool:
    return get_origin(kind) is Union or type(kind).__name__ == "UnionType"


def _numbers(name: str, text: str, kind: type, *, or_one: bool) -> Any:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--{name.replace('_', '-')} takes numbers separated by commas, for example 8,16,32; "
            f"got {text!r}"
        ) from None
    return numbers[0] if or_one and len(numbers) == 1 and "," not in text else numbers


def check_latency(text: str) -> None:
    """Check that a latency target has a unit, since 100 rarely means seconds.

    Raises:
        UsageError: for a plain number.
    """
    if text.strip().replace(".", "", 1).isdigit():
        raise UsageError(f"--latency {text} has no unit: write {text}ms, or {text}s")
