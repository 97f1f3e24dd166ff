"""How a verb's options are declared: once, in a frozen dataclass, with type, default and help.

The Python verb takes the fields as keywords (`rightbatch._workload.verb`), the command line takes
them as `--options` (`rightbatch._cli.options`). Values are checked when the dataclass is made. The
options that several verbs share are here. Imports neither torch nor cyclopts.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Annotated, Any, Literal

from rightbatch._errors import UsageError
from rightbatch._units import parse_bytes

SAME: Any = object()
"""As `Help.cli_default`: the default of the field."""


@dataclass(frozen=True)
class Help:
    """An option's help, put on its field with `Annotated`.

    `cli_default` is the default on the command line where Python has none, `cli_type` what the
    command line takes where Python takes more, `cli_name` the option's name where it is not the
    field's. A `python_only` option has no place there.
    """

    text: str
    cli_default: Any = SAME
    cli_type: Any = None
    cli_name: str | None = None
    python_only: bool = False


Memory = Annotated[int | str | None, Help("cap the device for a trial, for example 2GiB")]
Margin = Annotated[float, Help("share of the limit to leave free")]
MaxBatch = Annotated[int | None, Help("try nothing larger")]
Device = Annotated[str | None, Help("cpu, cuda, cuda:N or mps; default: the best")]
Seed = Annotated[int, Help("seed of everything random")]
BaseBatch = Annotated[int, Help("the size that the learning rate was chosen for")]
Inference = Annotated[bool, Help("forward only, no gradients")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every verb takes."""

    progress: Annotated[bool, Help("show on a terminal what runs", python_only=True)] = True

    def __post_init__(self) -> None:
        """Check the values; a subclass checks its own and calls this one.

        Raises:
            UsageError: for a value that the option cannot have.
        """


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Which device, and how much of its memory."""

    memory: Memory = None
    margin: Margin = 0.05
    device: Device = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < 1:
            raise UsageError(f"margin is a share of the limit from 0 to below 1, not {self.margin}")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(DeviceOptions):
    """Of a verb that tries batch sizes in probes."""

    max_batch: MaxBatch = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(max_batch=self.max_batch)


@dataclass(frozen=True, kw_only=True)
class AddressOptions:
    """Where a page or a service listens, and who may ask it."""

    host: Annotated[str, Help("bind address; a non-loopback address requires a token")] = (
        "127.0.0.1"
    )
    token: Annotated[
        str | None,
        Help(
            "bearer token of requests; other users see it in the list of processes: better "
            "--token-file or RIGHTBATCH_TOKEN; made for a non-loopback address if not given"
        ),
    ] = None


def own_first(options: type) -> list[Field[Any]]:
    """A dataclass' fields: what it declares itself before what it shares with others."""
    own = vars(options).get("__annotations__", {})
    return sorted(fields(options), key=lambda field: field.name not in own)


def check_at_least_one(**numbers: int | None) -> None:
    """Check options that count something; None is the absence of one.

    Raises:
        UsageError: for a number below 1, by its option's name.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is at least 1, not {value}")


def batch_or_auto(name: str, value: int | str) -> int | Literal["auto"]:
    """A batch size, which may be text as on the command line, or `"auto"`.

    Raises:
        UsageError: for anything else.

    >>> batch_or_auto("batch", "32"), batch_or_auto("batch", "auto")
    (32, 'auto')
    """
    if value == "auto":
        return "auto"
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    if not isinstance(number, int) or number < 1:
        raise UsageError(f"{name} is 'auto' or a number of at least 1, not {value!r}")
    return number
