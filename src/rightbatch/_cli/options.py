"""Options of the command line, made from the dataclasses that declare them.

A field becomes `--field` with its help and default. On the command line a memory size, `auto`, and
numbers separated by commas are text.
"""

from __future__ import annotations

import inspect
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
_NORMALIZED = "by channel, of images from 0 to 1; for .onnx of unknown origin"
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


def with_options(*groups: type) -> Callable[[Callable[..., None]], Command]:
    """Add the fields of `groups` to a command; it gets their values as its argument `options`."""
    return lambda function: Command(function, groups)


class Command:
    """A command for cyclopts. Its options are made on first use: `rightbatch --help` needs none."""

    def __init__(self, function: Callable[..., None], groups: tuple[type, ...]) -> None:
        self._function, self._groups = function, groups
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        """Run the command with the `keywords` from the command line."""
        options = {}
        for name, option in self._options.items():
            typed = keywords.pop(name, option.parameter.default)
            if typed is not None:
                options[name] = option.value(typed)
        self._function(*arguments, options=options, **keywords)

    @cached_property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(self._function)
        types = get_type_hints(self._function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in own.parameters.items():
            if name == "options":
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
