"""A command with placeholders: `python train.py --batch-size {batch}`.

Only known names in braces are replaced, so JSON and shell parameters in arguments stay as they are.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rightbatch._errors import UsageError

PLACEHOLDERS = {
    "batch": "the batch size",
    "micro_batch": "examples per forward pass",
    "accumulation": "micro-batches per update",
    "learning_rate": "the learning rate",
    "seed": "the seed",
    "out": "a folder for what the run writes",
    "resume": "the checkpoint to go on from",
}
_PATTERN = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
# Not --tokenizer, --max-tokens or --passes, whose values a reader needs.
_SECRET = re.compile(
    r"(?i)(passw(or)?d|passphrase|secret|credential|(api|access|private)[-_]?key"
    r"|(token|pwd|(^|[-_.])pass)$)"
)
_IN_ADDRESS = re.compile(r"//[^/@\s]+:([^/@\s]+)@")
HIDDEN = "***"
_LEAST_SECRET = 6  # characters; shorter ones occur in other words as well


@dataclass(frozen=True)
class Template:
    """The arguments of a command, some of which contain placeholders."""

    arguments: tuple[str, ...]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Template:
        """Check the arguments.

        Raises:
            UsageError: if there are none, or the program does not exist.
        """
        if isinstance(arguments, str) or not arguments:
            raise UsageError(
                'a command is a list of arguments: ["python", "train.py", "--batch", "{batch}"]; '
                "on the command line it stands behind --"
            )
        program = str(arguments[0])
        if shutil.which(program) is None:
            hint = ""
            if " " in program:
                hint = "; pass the arguments separately, without quotes around all of them"
            elif program.endswith(".py"):
                hint = f"; did you mean `python {program}`?"
            raise UsageError(f"there is no program {program!r} to run{hint}")
        return cls(tuple(map(str, arguments)))

    @property
    def names(self) -> frozenset[str]:
        """The placeholders that occur."""
        return frozenset(_PATTERN.findall("\0".join(self.arguments)))

    @property
    def title(self) -> str:
        """The program and its script or module, without folders and other arguments."""
        names = [Path(self.arguments[0]).name]
        for before, argument in zip(self.arguments, self.arguments[1:], strict=False):
            if before == "-m" or argument.endswith((".py", ".sh")):
                names.append(Path(argument).name)
                break
        return " ".join(names)

    def require(self, name: str, verb: str) -> None:
        """Check that a placeholder occurs.

        Raises:
            UsageError: if not; it says where to put it.
        """
        if name not in self.names:
            raise UsageError(
                f"{verb} needs {{{name}}} in the command, where {PLACEHOLDERS[name]} goes: "
                f"for example `{self} --{name.replace('_', '-')} {{{name}}}`, or any text around "
                f"it, such as optim.{name}={{{name}}}"
            )

    def without(self, name: str) -> Template:
        """Return the command without the arguments that hold a placeholder.

        `--lr {learning_rate}` goes as a whole, so that the script uses its own default.
        """
        kept: list[str] = []
        for argument in self.arguments:
            if f"{{{name}}}" not in argument:
                kept.append(argument)
            elif argument == f"{{{name}}}" and kept and kept[-1].startswith("-"):
                kept.pop()
        return Template(tuple(kept))

    def filled(self, values: Mapping[str, object]) -> list[str]:
        """Return the arguments with the placeholders replaced.

        Raises:
            UsageError: if a placeholder has no value.
        """
        missing = sorted(self.names - values.keys())
        if missing:
            raise UsageError(f"{{{missing[0]}}} has no value here; leave it out of the command")
        return list(self.partly_filled(values).arguments)

    def partly_filled(self, values: Mapping[str, object]) -> Template:
        """Return the command with the placeholders that have a value replaced."""

        def value(match: re.Match[str]) -> str:
            return str(values.get(match[1], match[0]))

        return Template(tuple(_PATTERN.sub(value, argument) for argument in self.arguments))

    def __str__(self) -> str:
        """The command as one types it, with values that look like secrets hidden."""
        return " ".join(map(_quoted, _without_secrets(self.arguments)))


def _quoted(argument: str) -> str:
    """Quote an argument for a shell, where more than the braces of placeholders needs it."""
    plain = _PATTERN.sub(r"\1", argument)
    return argument if plain and shlex.quote(plain) == plain else shlex.quote(argument)


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    shown = []
    for argument, secrets in zip(arguments, _secrets_of(arguments), strict=True):
        name, equals, value = argument.partition("=")
        if secrets == [argument]:
            shown.append(HIDDEN)
        elif equals and secrets == [value]:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(_IN_ADDRESS.sub(f"//{HIDDEN}@", argument))
    return shown


def _secrets_of(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield the secrets in each argument."""
    is_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if is_next and not argument.startswith("-"):
            yield [argument]
        elif equals and value and _SECRET.search(name):
            yield [value]
        else:
            yield _IN_ADDRESS.findall(argument)
        is_next = argument.startswith("-") and not equals and bool(_SECRET.search(argument))


def hide_secrets(text: str, arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """Hide what looks like a secret in a command's arguments or environment, in what it printed."""
    secrets = {secret for found in _secrets_of(arguments) for secret in found}
    secrets |= {value for name, value in variables.items() if _SECRET.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, HIDDEN)
    return text
