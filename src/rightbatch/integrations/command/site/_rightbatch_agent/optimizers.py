"""Which calls of which optimizers are one update, and which updates are one step of the training.

Torch's global hooks see every `step` of every `torch.optim.Optimizer`, whenever it was made. Calls
inside another optimizer's step belong to that step (SAM, ZeroRedundancyOptimizer). Calls of one
optimizer without a backward pass in between are one update (the sub-groups of DeepSpeed's ZeRO).
Several optimizers in turn make one step of the training together: the period of a GAN. It ends with
the optimizer that steps least often, of those the last one in the period.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from typing import Any, Callable

_PATIENCE = 24  # updates after which an optimizer that has not stepped is ignored


class Period:
    """Learns which optimizer ends the period, from the order of their updates.

    An optimizer that is new begins a period of its own, until another one steps as well: the ones
    before are over in a training that makes an optimizer for each fold, or for each stage.
    """

    def __init__(self) -> None:
        self._awaited: set[int] = set()  # have not stepped yet
        self._order: list[int] = []
        self._members: set[int] = set()  # of the period that was learned
        self._last: int | None = None

    @property
    def count(self) -> int:
        """The number of optimizers that take turns, or may do so."""
        return len(self._awaited.union(self._order, self._members))

    def expect(self, key: int) -> None:
        """Learn anew, with an optimizer that has just been made."""
        self._restart({*self._awaited, key})

    def forget(self, key: int) -> None:
        """Take in that an optimizer does not exist any more."""
        self._awaited.discard(key)
        if key in self._members or key in self._order:
            self._restart(self._awaited)

    def ends(self, key: int) -> bool:
        """Record an update of the optimizer `key`; return whether it ends a period.

        That is unknown, and False, until every optimizer has stepped and the first steps again.
        """
        self._awaited.discard(key)
        if self._last is not None and key not in self._members:
            self._restart(self._members)
        if self._last is None:
            self._order.append(key)
            self._last = self._learn()
        return key == self._last

    def _restart(self, awaited: set[int]) -> None:
        self._awaited, self._order = set(awaited), []
        self._members, self._last = set(), None

    def _learn(self) -> int | None:
        if len(self._order) == 1 and not self._awaited:
            self._members = set(self._order)
            return self._order[0]
        *period, following = self._order
        counts = Counter(period)
        is_complete = not self._awaited or len(self._order) >= _PATIENCE
        if not is_complete or following != self._order[0]:
            return None
        self._members = set(counts)
        self._awaited = set()  # what has not stepped by now is not waited for
        rarest = min(counts.values())
        return next(key for key in reversed(period) if counts[key] == rarest)


class Updates:
    """Calls `before` ahead of an optimizer's update and `after` behind it.

    `after` gets whether the update ends a step of the training. `created` is called with a new
    optimizer, `loads` returns a context for that, in which torch may import much.
    """

    def __init__(
        self,
        torch: Any,
        loads: Callable[[], Any],
        created: Callable[[Any], None],
        before: Callable[[Any], None],
        after: Callable[[Any, bool], None],
    ) -> None:
        self._created, self._before, self._after = created, before, after
        self.is_on = True
        self._depth = 0
        self._period = Period()
        # Weak references: the agent keeps no model that the script has dropped.
        self._keys: dict[int, tuple[Any, int]] = {}  # by the id of the first parameter
        self._optimizers: dict[int, Any] = {}  # by key
        self._parameters: set[int] = set()  # ids
        self._last: Callable[[], Any] = lambda: None
        self._number = 0
        self._has_seen_gradients = False
        self.has_gradients = False
        """Whether a backward pass has run since the last update; the watcher sets it."""
        module = sys.modules["torch.optim.optimizer"]  # `torch.optim` hides the name
        module.register_optimizer_step_pre_hook(self._on_entry)
        module.register_optimizer_step_post_hook(self._on_exit)
        make = module.Optimizer.__init__

        @functools.wraps(make)
        def make_and_count(optimizer: Any, *arguments: Any, **keywords: Any) -> None:
            with loads():
                make(optimizer, *arguments, **keywords)
            if self.is_on:
                self._count(optimizer)

        module.Optimizer.__init__ = make_and_count

    @property
    def is_inside(self) -> bool:
        """Whether an optimizer's `step` is running, as when it calls a closure."""
        return self._depth > 0

    @property
    def count(self) -> int:
        """The number of optimizers of different parameters that take turns."""
        return self._period.count

    @property
    def has_any(self) -> bool:
        """Whether there has been an optimizer of torch's."""
        return bool(self._keys)

    def trains(self, module: Any) -> bool:
        """Whether the first parameter of a module is in an optimizer."""
        parameter = next(module.parameters(), None)
        return parameter is not None and id(parameter) in self._parameters

    def _living(self) -> list[Any]:
        return [optimizer for each in self._optimizers.values() if (optimizer := each())]

    def fixed_bytes(self) -> int:
        """Return the bytes of weights, gradients and optimizer state, which no batch changes."""
        tensors: dict[int, int] = {}
        for optimizer in self._living():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    found = [
                        parameter,
                        parameter.grad,
                        *optimizer.state.get(parameter, {}).values(),
                    ]
                    for tensor in found:
                        if hasattr(tensor, "element_size"):
                            tensors[id(tensor)] = tensor.element_size() * tensor.numel()
        return sum(tensors.values())

    def missing_gradient_bytes(self) -> int:
        """Return the bytes of the gradients that a backward pass has to allocate."""
        return sum(
            parameter.element_size() * parameter.numel()
            for optimizer in self._living()
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad and parameter.grad is None
        )

    def _count(self, optimizer: Any) -> int:
        """Return the key of an optimizer: one that wraps another has its first parameter."""
        groups = optimizer.param_groups
        parameter = groups[0]["params"][0] if groups and groups[0]["params"] else optimizer
        reference, key = self._keys.get(id(parameter), (None, 0))
        if reference is None or reference() is not parameter:
            for gone in [key for key, each in self._optimizers.items() if each() is None]:
                del self._optimizers[gone]
                self._period.forget(gone)
            key = self._number = self._number + 1
            self._keys[id(parameter)] = weakref.ref(parameter), key
            self._optimizers[key] = weakref.ref(optimizer)
            self._parameters |= {id(p) for group in groups for p in group["params"]}
            self._period.expect(key)
            self._created(optimizer)
        elif self._optimizers.get(key, lambda: None)() is None:  # another one of the same model
            self._optimizers[key] = weakref.ref(optimizer)
        return key

    def _on_entry(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        self._depth += 1
        if self._depth == 1 and self.is_on:
            self._before(optimizer)

    def _on_exit(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth or not self.is_on:
            return
        self._has_seen_gradients = self._has_seen_gradients or self.has_gradients
        # A loop without backward passes (`torch.func`) has no sub-groups that could be told.
        is_sub_group = (
            optimizer is self._last() and not self.has_gradients and self._has_seen_gradients
        )
        self._last, self.has_gradients = weakref.ref(optimizer), False
        if not is_sub_group:
            key = self._count(optimizer)
            self._after(optimizer, self._period.ends(key))
