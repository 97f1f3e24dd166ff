"""Batch sizes to try, and those that a workload takes, where it rejects others with an error.

A loss over pairs takes even sizes, a queue of features those that divide its length. What is known
is which sizes ran and which failed, so the rule is a guess that every failure corrects.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

TRIED = (1, 2, 4, 8, 6, 10, 16)
"""Sizes tried until one is taken: multiples of 2, 4, 8, 3, 5 and 16 are among them."""
_LADDER = (1, 2, 4, 8)


@dataclass(frozen=True)
class Sizes:
    """Multiples of `step`, or with `powers` only `step` times powers of two, below `bound`."""

    step: int = 1
    powers: bool = False
    bound: int | None = None

    def at_most(self, size: int) -> int:
        """Return the largest of these sizes up to `size`; 0 if there is none."""
        if self.bound is not None:
            size = min(size, self.bound - 1)
        if not self.powers or size < self.step:
            return max(size // self.step, 0) * self.step
        return self.step << ((size // self.step).bit_length() - 1)

    def between(self, least: int, most: int) -> list[int]:
        """Return `least`, the powers of 2 up to `most`, and `most`, each lowered to such a size.

        >>> Sizes(6).between(6, 100)
        [6, 12, 30, 60, 96]
        """
        found = map(self.at_most, sizes_between(least, most))
        return sorted({size for size in found if least <= size})

    def after(self, size: int) -> int:
        """Return the smallest of these sizes above `size`, which is one; ignores `bound`."""
        return 2 * size if self.powers else (size // self.step + 1) * self.step

    def next_to_try(self, taken: int) -> int:
        """Return the next size to try below `bound`, above `taken`; `taken` if it is near enough.

        The rejected size may be beyond an upper bound, or have no rule that a few sizes show (a
        queue's length). First powers of 2 are bisected, then the interval from the last of them,
        to a quarter of it.

        >>> Sizes(bound=1024).next_to_try(8), Sizes(bound=64).next_to_try(32)
        (64, 48)
        """
        if self.bound is None:
            raise ValueError("no size was rejected")
        low, high = self._power(taken), self._power(self.bound - 1)
        if low < high:
            return low << ((high // low).bit_length() // 2)
        if self.bound - taken <= max(low // 4, self.step):
            return taken
        return max(self.at_most((taken + self.bound) // 2), taken)

    def _power(self, size: int) -> int:
        """Return the largest of `step` times a power of 2 up to `size`, at least `step`."""
        return self.step << (max(size // self.step, 1).bit_length() - 1)

    def describe(self) -> str:
        """Return which sizes these are, for a note."""
        if self.powers:
            what = f"{self.step} times a power of 2" if self.step > 1 else "powers of 2"
        else:
            what = f"multiples of {self.step}" if self.step > 1 else "all"
        return what if self.bound is None else f"{what} below {self.bound}"


def sizes_taken(taken: Collection[int], rejected: Collection[int], multiple: int) -> Sizes:
    """Return the sizes to try, from those that ran and those that the workload rejected.

    Where no rule is left, as after a power of 2, there is an upper bound: larger sizes are taken to
    be rejected, too.

    >>> sizes_taken({6}, {1, 2, 4, 8}, 1)
    Sizes(step=6, powers=False, bound=None)
    >>> sizes_taken(set(), {1, 2}, 1)  # none is known to be taken yet
    Sizes(step=4, powers=False, bound=None)
    >>> sizes_taken({1, 2, 4, 8}, {301}, 1).at_most(301)
    300
    >>> sizes_taken({1, 2, 4, 8}, {47, 46}, 1).at_most(47)  # is there a rule, or a bound?
    32
    """
    least = min(taken, default=multiple)
    early = {size for size in rejected if size < least}
    # One example may be too few without a rule for others: BatchNorm needs two.
    step = least if max(early, default=1) > 1 else multiple
    late = {size for size in rejected if size > least}
    # The first sizes follow many rules, later ones only their own.
    telling = {size for size in taken if size > _LADDER[-1] * step}

    def is_possible(rule: Sizes) -> bool:
        return all(rule.at_most(size) == size for size in telling) and not any(
            rule.at_most(size) == size for size in late
        )

    powers = Sizes(step, powers=True)
    for factor in _LADDER:
        rule = Sizes(factor * step)
        if is_possible(rule):
            is_doubtful = factor > 2 and max(taken, default=0) < powers.at_most(min(late))
            # After two wrong guesses only a power of 2 tells a rule from a bound.
            return powers if is_doubtful and is_possible(powers) else rule
    return powers if is_possible(powers) else Sizes(step, bound=min(late))


def sizes_between(least: int, most: int) -> list[int]:
    """Return the powers of 2 from `least` to `most`, and these two.

    >>> sizes_between(2, 24)
    [2, 4, 8, 16, 24]
    """
    powers = [2**n for n in range(least.bit_length() - 1, most.bit_length())]
    return sorted({least, most, *(p for p in powers if least <= p <= most)})
