"""The contract of an integration of `Elastic`: it survives errors at every place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

import pytest
import torch
from torch import Tensor

from rightbatch._faults import PLACES, Place
from rightbatch.testing._faults import inject_out_of_memory


class IntegrationContract:
    """Subclass it with `train`: a short training through the framework, with evaluation.

    Every call must be the same training: the same weights and data in the same order. Batches are
    larger than `micro_batch_size`, and no part has a single example. Override `resumed` if the
    framework can resume. Set `is_exact` to False if parts are not equivalent to the whole batch
    (BatchNorm, a loss that does not split); then `tolerance` is not used. A failure is injected at
    the `when`-th entry of each place.
    """

    micro_batch_size: ClassVar[int] = 4
    whole: ClassVar[int] = 64
    when: ClassVar[int] = 2
    is_exact: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-5

    def train(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        """Train in parts of `micro_batch_size`, write into `folder`, and return the weights."""
        raise NotImplementedError

    def resumed(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        """Run the same training, stopped halfway and resumed from its checkpoint."""
        raise SkipTest("the integration does not resume")

    @pytest.fixture
    def undisturbed(self, tmp_path: Path) -> Sequence[Tensor]:
        kind = type(self)
        if "_ended" not in vars(kind):  # once: another test checks that it is reproducible
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
            raise SkipTest("parts are not equivalent to the whole batch")
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
