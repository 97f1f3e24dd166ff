"""Which updates are one step of a training, from the order of the optimizers' updates."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch.integrations.command as command

SITE = Path(command.__file__).parent / "site"


@pytest.fixture(autouse=True)
def _agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def ends(order: str, count: int) -> str:
    """Return the order with a bar after each update that ends a step."""
    from _rightbatch_agent.optimizers import Period

    period = Period()
    for key in range(count):
        period.expect(ord("a") + key)
    found = []
    for name in order:
        if name.isupper():  # a new one
            period.expect(ord(name.lower()))
        else:
            found.append(name + "|" * period.ends(ord(name)))
    return "".join(found)


@pytest.mark.parametrize(
    ("order", "count", "expected"),
    [
        ("aaaa", 1, "a|a|a|a|"),
        ("bababa", 2, "baba|ba|"),  # a GAN; the first period is needed to know the second
        ("bbbabbbabbba", 2, "bbbabbba|bbba|"),  # a critic that steps three times as often
        ("abbabbabb", 2, "abba|bba|bb"),
        ("aaaBbbbCcc", 1, "a|a|a|b|b|b|c|c|"),  # an optimizer for each fold
        ("aaaBababab", 1, "a|a|a|abab|ab|"),  # one that joins
        ("aaaBbbababab", 1, "a|a|a|b|b|abab|ab|"),
        ("abcabcabc", 3, "abcabc|abc|"),
    ],
)
def test_a_step_ends_with_the_rarest_optimizer(order: str, count: int, expected: str) -> None:
    assert ends(order, count) == expected


def test_an_optimizer_that_never_steps_is_ignored_after_a_while() -> None:
    found = ends("ab" * 20, 3)
    assert "|" not in found[:24]
    assert found.endswith("ab|ab|")


def test_sizes_of_batches_are_their_first_dimension() -> None:
    import torch
    from _rightbatch_agent.loaders import leading_size

    images = torch.zeros(5, 3, 4, 4)
    assert leading_size(images) == 5
    assert leading_size([images, torch.zeros(5)]) == 5
    assert leading_size({"ids": torch.zeros(7, 3)}) == 7
    assert leading_size(("text", {"x": torch.zeros(2)})) == 2
    assert leading_size("text") is None
    assert leading_size(torch.tensor(1.0)) is None
    assert "torch" in sys.modules


@pytest.mark.parametrize(
    ("shape", "asked", "expected"),
    [
        ((20, 35), None, 20),
        ((35, 20), None, 35),
        ((35, 20), 20, 20),  # time first
        ((7, 20), 20, 20),  # the rest of the text
        ((20, 20), 20, 20),
        ((8, 3, 32, 32), 3, 8),  # images of three channels: a script that rounds its batch
        ((8, 3, 32, 32), 16, 8),  # a script that clips its batch
        ((5,), 20, 5),
        ((), 20, None),
    ],
)
def test_the_examples_are_where_the_size_is_that_was_asked_for(
    shape: tuple[int, ...], asked: int | None, expected: int | None
) -> None:
    import torch
    from _rightbatch_agent.loaders import leading_size

    assert leading_size((torch.zeros(shape),), asked) == expected
    assert leading_size({"x": torch.zeros(shape)}, asked) == expected
