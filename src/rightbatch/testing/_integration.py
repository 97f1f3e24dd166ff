"""What every integration of `Elastic` does, wherever memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import pytest
import torch
from torch import Tensor

from rightbatch._faults import PLACES, Place
from rightbatch._fit.fit import fit
from rightbatch._tune.tune import tune
from rightbatch.testing._faults import inject_out_of_memory


class IntegrationContract:
    """Subclass it with `train`: a short training through the framework, evaluation included.

    It is the same training every time it is called: same weights, same data in the same order.
    Batches are larger than `micro_batch_size`, and no part is left with one example. Override
    `resumed` where the framework resumes. `is_exact` is False where parts do not make the whole
    (BatchNorm, a loss that does not split); then `tolerance` is not looked at. A failure comes at
    the `when`-th entry of each place. `factory` is what `fit` and `tune` are given for the same
    training.
    """

    micro_batch_size: ClassVar[int] = 4
    whole: ClassVar[int] = 64
    when: ClassVar[int] = 2
    is_exact: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-5

    def train(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        """Train in parts of `micro_batch_size`, write into `folder`; returns the weights."""
        raise NotImplementedError

    def resumed(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        """The same training, ended in the middle and resumed from what was saved."""
        raise SkipTest("it does not resume")

    def factory(self) -> object:
        """The same training as a factory."""
        raise SkipTest("its objects are those of a plain loop")

    @pytest.fixture
    def undisturbed(self, tmp_path: Path) -> Sequence[Tensor]:
        kind = type(self)
        if "_ended" not in vars(kind):  # once is enough: another test sees that it repeats
            kind._ended = self._trained(tmp_path / "undisturbed", self.micro_batch_size)
        return kind._ended

    _ended: ClassVar[Sequence[Tensor]]

    def test_the_same_training_ends_at_the_same_weights(
        self, undisturbed: Sequence[Tensor], tmp_path: Path
    ) -> None:
        assert _equal(self._trained(tmp_path / "again", self.micro_batch_size), undisturbed)

    def test_parts_end_where_the_whole_does(
        self, undisturbed: Sequence[Tensor], tmp_path: Path
    ) -> None:
        if not self.is_exact:
            raise SkipTest("parts do not make the whole here")
        whole = self._trained(tmp_path / "whole", self.whole)
        assert _difference(undisturbed, whole) <= self.tolerance

    @pytest.mark.parametrize("place", PLACES)
    def test_a_failure_leaves_the_end_as_it_is(
        self, undisturbed: Sequence[Tensor], tmp_path: Path, place: Place
    ) -> None:
        with inject_out_of_memory(place, self.when) as injected:
            ended = self._trained(tmp_path / "disturbed", self.micro_batch_size)
        assert injected.failed == [self.when], f"{place} was entered {injected.entries} times"
        if place != "evaluation" or self.is_exact:
            assert _equal(ended, undisturbed)

    def test_a_size_that_fails_twice_is_halved_and_the_training_goes_on(
        self, undisturbed: Sequence[Tensor], tmp_path: Path
    ) -> None:
        with inject_out_of_memory("backward", (0, 1)) as injected:
            ended = self._trained(tmp_path / "disturbed", self.micro_batch_size)
        assert injected.failed == [0, 1]
        if self.is_exact:
            assert _difference(ended, undisturbed) <= self.tolerance

    def test_a_resumed_training_ends_where_one_does_that_was_never_ended(
        self, undisturbed: Sequence[Tensor], tmp_path: Path
    ) -> None:
        ended = [t.detach().clone() for t in self.resumed(tmp_path, self.micro_batch_size)]
        assert _equal(ended, undisturbed)

    def test_fit_and_tune_go_through_it(self) -> None:
        asked: dict[str, Any] = {"max_batch": 8, "device": "cpu", "progress": False}
        factory = self.factory()
        largest = fit(factory, **asked)
        assert largest.batch_size == 8
        assert {probe.outcome for probe in largest.probes} == {"ok"}
        plan = tune(factory, largest=largest, budget=2, **asked)
        assert 1 <= plan.batch_size <= 8
        assert len(plan.seen.at_weights) >= 2
        assert plan.expected[0].examples_per_second > 0

    def _trained(self, folder: Path, micro_batch_size: int) -> list[Tensor]:
        folder.mkdir()
        return [t.detach().clone() for t in self.train(folder, micro_batch_size)]


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    apart = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)
    )
    size = sum(float(b.double().square().sum()) for b in other)
    return float((apart / size) ** 0.5)
