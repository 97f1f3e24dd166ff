"""Puts this folder on `sys.path`: the tests below it import `films`, `servers` and `sites`."""
