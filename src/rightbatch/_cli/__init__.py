"""The command line: one module per verb, which calls the Python verb.

`app` has the commands and exit codes, `options` makes `--options` from the verbs' dataclasses,
`output` prints results.
"""

from __future__ import annotations

from rightbatch._cli.app import main

__all__ = ["main"]
