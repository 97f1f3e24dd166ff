"""The examples of a micro-batch where no loader tells: the first input of the outermost module."""

from __future__ import annotations

from typing import Any

from .loaders import leading_size, shape_of


class Inputs:
    """Looks at the inputs of modules between two backward passes; `asked` stands for `{batch}`.

    What ran before the gradients were cleared counts only if nothing ran after it: a dummy forward
    pass before the training shows a size of its own. A module that is called several times may
    get its examples one by one, as a policy does, or the same ones again, as a recurrent cell does.
    """

    def __init__(self, asked: int | None) -> None:
        self._asked = asked
        self._settled: int | None = None
        self._is_settled = False
        self._before: int | None = None  # the gradients were cleared
        self._clear()

    def _clear(self) -> None:
        self._size: int | None = None
        self._module: Any = None
        self._calls = 0

    def look(self, module: Any, arguments: Any) -> None:
        """Take in a call of a module."""
        if self._size is None:
            self._size = leading_size(arguments, self._asked)
            self._module, self._calls = module, 1
        elif module is self._module:
            self._calls += 1
        elif getattr(module, "batch_first", True) is False:  # torch's recurrent layers and others
            shape = shape_of(arguments[0] if arguments else None)
            is_sequence = shape is not None and len(shape) == 3  # (time, batch, features)
            if is_sequence and self._asked in (None, shape[1]):  # type: ignore[index]
                self._size = shape[1]  # type: ignore[index]

    def cleared(self) -> None:
        """Take in that the gradients were cleared."""
        if self._size is not None:
            self._before = self.size
            self._clear()

    def settle(self, size: int | None) -> None:
        """From now on, micro-batches have this size."""
        self._is_settled, self._settled = True, size
        self.restart()

    def restart(self) -> None:
        """A micro-batch is over; the next one may be smaller."""
        self._before = None
        self._clear()

    @property
    def size(self) -> int | None:
        """The examples of this micro-batch; None if they are unknown."""
        if self._is_settled:
            return self._settled
        if self._size is None:
            return self._before
        if self._calls > 1:
            is_batch = self._size > 1 if self._asked is None else not self._size % self._asked
            return self._size if is_batch else None
        return self._size
