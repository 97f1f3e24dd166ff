"""The command line: one module per verb, each a thin face over the Python verb.

`app` has the commands and their exit codes, `options` makes `--options` of the verbs' dataclasses,
`output` prints results.
"""

from __future__ import annotations

from rightbatch._cli.app import main

__all__ = ["main"]
