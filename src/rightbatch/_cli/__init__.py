"""The command line: one module per verb, and the options that they share."""

from __future__ import annotations

from rightbatch._cli.app import main

__all__ = ["main"]
