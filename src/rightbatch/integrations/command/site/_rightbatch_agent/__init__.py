"""The agent: code of rightbatch inside the Python processes of a command.

It uses the standard library and the command's own torch, since the command may run in an
environment without rightbatch, on Python 3.9 or newer. It only observes, except that in a trial it
limits memory, protects files, and blocks at the last step until the parent ends the process. An
error of its own never reaches the command: the agent reports it and stops observing.

    settings     what the parent wants, from an environment variable
    connection   messages to the parent, and the end of this process when the parent has gone
    imports      a callback after `import torch`
    watcher      steps, micro-batches, losses, and the time spent waiting for data
    optimizers   which calls of which optimizers are one update
    decays       of adaptive optimizers
    loaders      how many examples loaders return
    inputs       how many examples modules get, without a loader
    noise        gradient statistics of sampled steps
    memory       limit and peak of this process
    live         what malloc has given out, within a step
    files        files of the user's that a trial must not overwrite
    made         files that earlier trials have made
    native_writers  writers that Python's audit hooks do not see
"""

from __future__ import annotations


def start() -> None:
    """Install the agent; called before the command's first line."""
    from . import files, imports, native_writers
    from .settings import Settings

    settings = Settings.from_environment()
    if settings is None:
        return
    guard = files.protect(settings) if settings.trial else None
    if guard is not None:
        native_writers.protect(guard)

    def observe(torch: object) -> None:
        from .watcher import Watcher

        if guard is not None:
            native_writers.protect_torch(guard, torch)
        Watcher(torch, settings).install()

    imports.after_import("torch", observe)
