"""What the parts of a batch log in Lightning's own loop: logged once, for the whole batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rightbatch._workload.batch import Batch
from rightbatch.integrations.lightning._hooks import base_of, examples_in
from rightbatch.integrations.lightning._logged import Entry, Values, entry
from rightbatch.integrations.lightning._metric_states import (
    metric_states,
    metrics_in,
    set_metric_states,
)


class DeferredLog:
    """Collects what `module.log` gets for the parts of a batch, and logs it when all have run.

    Probes and failed attempts log nothing, and leave the module's torchmetrics as they were.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._metrics = metrics_in(module)
        self._values = Values()
        self._arguments: dict[str, dict[str, Any]] = {}
        self._entries: list[Entry] | None = None
        self._weight = 1.0
        self._is_kept = False

    @contextmanager
    def batch(self, *, has_attempts: bool) -> Iterator[None]:
        """Log what the parts that run inside log; with attempts, only those after `attempt`."""
        module, own = self._module, vars(self._module).get("log")
        log = self._log_of_batch = module.log
        self._before = metric_states(self._metrics)
        self._forget()
        self._is_kept = not has_attempts
        module.log = self._log
        try:
            yield
        finally:
            self._is_kept = False
            if own is None:
                del module.log
            else:
                module.log = own
        for name, (value, weight) in self._values.reduced().items():
            arguments = dict(self._arguments[name])  # with the last part's value
            if weight:
                arguments["value"] = value
            if arguments["batch_size"] is not None:
                arguments["batch_size"] = round(weight)
            log(**arguments)

    def attempt(self) -> None:
        """Forget what ran before; an attempt at the whole batch starts."""
        set_metric_states(self._metrics, self._before)
        self._forget()
        self._is_kept = True

    @contextmanager
    def part(self, part: Batch) -> Iterator[None]:
        """Keep what is logged inside, unless it fails."""
        self._entries, self._weight = [], examples_in(part)
        before, is_done = metric_states(self._metrics), False
        try:
            yield
            is_done = True
            if self._is_kept:
                self._values.extend(self._entries)
        finally:
            self._entries = None
            if not is_done:
                set_metric_states(self._metrics, before)

    def _forget(self) -> None:
        self._values.reset()
        self._arguments.clear()

    def _log(self, *arguments: Any, **keywords: Any) -> None:
        if self._entries is None:  # in a hook of the batch, not in a step
            self._log_of_batch(*arguments, **keywords)
            return
        # The signature of Lightning's, since a module may override it with any.
        own: Any = base_of(self._module)
        bound = inspect.signature(own.log).bind(None, *arguments, **keywords)
        bound.apply_defaults()
        given = {key: each for key, each in bound.arguments.items() if key != "self"}
        name = given["name"]
        found = entry(name, given["value"], given["batch_size"], self._weight, given["reduce_fx"])
        self._arguments[name] = given | {"value": found[1]}  # without its graph
        self._entries.append(found)
