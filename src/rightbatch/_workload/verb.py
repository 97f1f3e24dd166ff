"""A verb of the package, made from a function of a workload and a dataclass of options.

    @takes(FitOptions)
    def fit(workload: object, options: FitOptions, **spec: Any) -> FitResult: ...

    rb.fit(factory, memory="2GiB")                 # a field of FitOptions each
    rb.fit("yolo26n.yaml", data="parts.yaml")      # other keywords go to the integration's spec

Type checkers see the dataclass' fields as the verb's keywords, and so do `help` and
`inspect.signature`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

from rightbatch._workload.options import own_first

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741  a dataclass of options
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Verb(Protocol[P, R_co]):
    """A public verb."""

    __name__: str

    @overload
    def __call__(self, workload: object, *args: P.args, **options: P.kwargs) -> R_co: ...

    @overload
    def __call__(self, workload: str | Path, **options: Any) -> R_co: ...


class takes(Generic[P, O]):
    """Make a verb whose keywords are the fields of `options`, a dataclass."""

    def __init__(self, options: Callable[P, O]) -> None:
        self._options: Any = options

    def __call__(self, function: Callable[Concatenate[object, O, ...], R], /) -> Verb[P, R]:
        """The verb; other keywords than the fields are handed on to `function`."""
        names = {field.name for field in fields(self._options)}
        signature = _signature(function, self._options)

        def verb(*arguments: Any, **keywords: Any) -> R:
            given = signature.bind(*arguments, **keywords).arguments
            spec = given.pop("spec", {})
            workload = given.pop("workload")
            assert given.keys() <= names
            return function(workload, self._options(**given), **spec)

        made: Any = verb
        made.__name__ = made.__qualname__ = function.__name__
        made.__module__, made.__doc__ = function.__module__, function.__doc__
        made.__signature__ = signature
        made.__annotations__ = {
            name: parameter.annotation for name, parameter in signature.parameters.items()
        } | {"return": signature.return_annotation}
        return cast("Verb[P, R]", made)


def _signature(function: Callable[..., Any], options: type) -> inspect.Signature:
    own = inspect.signature(function)
    workload, _, *spec = own.parameters.values()
    types, declared = get_type_hints(options), inspect.signature(options).parameters
    keywords = [
        declared[field.name].replace(annotation=types[field.name]) for field in own_first(options)
    ]
    return own.replace(parameters=[workload, *keywords, *spec])
