"""The commands and their exit codes. Imports neither torch nor any framework."""

from __future__ import annotations

import os
import shlex
import sys
from typing import NoReturn

from cyclopts import App
from cyclopts.exceptions import CycloptsError
from rich.console import Console

from rightbatch import __version__
from rightbatch._cli.bench import bench
from rightbatch._cli.check import check
from rightbatch._cli.fit import fit
from rightbatch._cli.options import Command
from rightbatch._cli.output import document
from rightbatch._cli.pages import report, ui
from rightbatch._cli.predict import predict
from rightbatch._cli.run import run
from rightbatch._cli.serve import serve
from rightbatch._cli.study import study
from rightbatch._cli.train import train
from rightbatch._cli.tune import tune
from rightbatch._errors import RightbatchError, WorkloadError

INTERRUPTED = 130

app = App(
    name="rightbatch",
    help="The right batch size for PyTorch: found, explained and kept.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` handles it
)
COMMANDS = (fit, run, predict, check, tune, train, study, ui, report, serve, bench)
for command in COMMANDS:
    app.command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command, and exit with its code.

    0: done; 1: no answer (nothing fits, nothing is in time); 2: wrong use; 3: the workload failed;
    130: Ctrl-C.
    """
    tokens = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent to other machines
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app(
            join_command(with_required(join_dash(tokens))),
            exit_on_error=False,
            error_console=stderr,
            result_action="return_value",
        )
    except CycloptsError:
        sys.exit(2)  # cyclopts has printed the error
    except RightbatchError as error:
        if isinstance(error, WorkloadError) and error.traceback:
            stderr.print(error.traceback, markup=False)
        stderr.print(f"rightbatch: {error}", markup=False)
        if "--json" in tokens and error.exit_code != 2:
            print(document(error.to_dict()))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interruption:
        stderr.print(
            f"rightbatch: {str(interruption) or 'interrupted; no processes or files remain'}"
        )
        sys.exit(INTERRUPTED)
    sys.exit(0)


def join_dash(tokens: list[str]) -> list[str]:
    """Make `--to=-` of `--to -`: cyclopts takes a dash for an option."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    found: list[str] = []
    for place, token in enumerate(tokens):
        if token == "-" and 0 < place < end and found[-1].startswith("--"):
            found[-1] += "=-"
        else:
            found.append(token)
    return found


def with_required(tokens: list[str]) -> list[str]:
    """Make `--epochs=3` of `epochs=3`, where the command needs the option."""
    commands = (each for each in COMMANDS if isinstance(each, Command))
    command = next((each for each in commands if tokens[:1] == [each.__name__]), None)
    if command is None or "--" in tokens:
        return tokens
    return command.with_required(tokens)


def join_command(tokens: list[str]) -> list[str]:
    """Join what follows `--` to one argument, which `rightbatch.integrations.command` knows."""
    if "--" not in tokens:
        return tokens
    at = tokens.index("--")
    return [*tokens[:at], "--", "-- " + shlex.join(tokens[at + 1 :])]
