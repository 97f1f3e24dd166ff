"""`rightbatch run`."""

from __future__ import annotations

import sys

from rightbatch._cli.options import Json, Keywords, WatchedCommand, with_options
from rightbatch._cli.output import document
from rightbatch._run.options import RunOptions


@with_options(RunOptions)
def run(command: WatchedCommand, /, *, options: Keywords, json: Json = False) -> None:
    """Run any command unchanged, and report what it does with its memory and its batch.

    Example: rightbatch run -- python train.py --batch-size 32
    """
    from rightbatch._run.run import run

    report = run(command, stdout_to_stderr=json, **options)
    if json:
        print(document(report.to_dict()))
    else:
        print(f"rightbatch: {report}", file=sys.stderr)
    code = report.exit_code or 0
    sys.exit(128 - code if code < 0 else code)
