"""What a probe relies on in every `Session`."""

from __future__ import annotations

import time
from typing import ClassVar
from unittest import SkipTest

import torch
from torch import Tensor, nn

from rightbatch._workload.workload import Session


class SessionContract:
    """Subclass it with a fixture `session`: a new `Session` for every test.

    `sizes` are batch sizes that it can run, in a growing order; without 1 for a model with
    BatchNorm. `trains` is False for a session of inference, which has no step. Override `model_of`
    where the model can be reached, and the contract sees to it that only steps change it.
    """

    sizes: ClassVar[tuple[int, ...]] = (1, 2, 3)
    trains: ClassVar[bool] = True

    def model_of(self, session: Session) -> nn.Module | None:
        """The model that the session trains; None where it cannot be reached."""
        return None

    def test_examples_are_a_count_or_unknown(self, session: Session) -> None:
        examples = session.examples
        assert examples is None or (isinstance(examples, int) and examples > 0)

    def test_whether_batches_differ_in_shape_is_known(self, session: Session) -> None:
        assert session.varies in (True, False)

    def test_it_runs_growing_sizes_and_small_ones_again(self, session: Session) -> None:
        for size in (*self.sizes, self.sizes[0], self.sizes[0]):
            if self.trains:
                session.step(size)
                session.step(size)
            session.evaluate(size)

    def test_an_evaluation_says_how_many_examples_it_held(self, session: Session) -> None:
        for size in self.sizes:
            if self.trains:
                session.step(size)
            held = session.evaluate(size)
            assert isinstance(held, int)
            assert held > 0

    def test_a_step_trains_whatever_was_evaluated_before(self, session: Session) -> None:
        model = self.model_of(session)
        if model is None or not self.trains:
            raise SkipTest("it does not train, or its model cannot be reached")
        session.step(self.sizes[-1])
        session.evaluate(self.sizes[-1])
        before = _copies(model)
        session.step(self.sizes[-1])
        assert not _equal(before, model), "a step left every parameter as it was"

    def test_a_timed_step_trains_and_its_parts_are_its_time(self, session: Session) -> None:
        if not self.trains:
            raise SkipTest("it does not train")
        model = session.modules()[0]
        session.timed_step(self.sizes[-1])
        before, began = _copies(model), time.perf_counter()
        seconds = session.timed_step(self.sizes[-1])
        parts = (seconds.loading, seconds.computing, seconds.updating)
        assert all(part > 0 for part in parts)
        assert sum(parts) <= time.perf_counter() - began
        assert not _equal(before, model), "a timed step left every parameter as it was"

    def test_an_evaluation_changes_no_parameter_and_leaves_no_gradient(
        self, session: Session
    ) -> None:
        model = self.model_of(session)
        if model is None:
            raise SkipTest("its model cannot be reached")
        before = _copies(model)
        session.evaluate(self.sizes[-1])
        assert _equal(before, model), "an evaluation changed a parameter"
        assert all(p.grad is None for p in model.parameters()), "it computed gradients"

    def test_an_evaluation_leaves_gradients_enabled(self, session: Session) -> None:
        session.evaluate(self.sizes[0])
        assert torch.is_grad_enabled()

    def test_closing_twice_is_closing_once(self, session: Session) -> None:
        if self.trains:
            session.step(self.sizes[0])
        session.evaluate(self.sizes[0])
        session.close()
        session.close()

    def test_a_session_that_never_ran_can_be_closed(self, session: Session) -> None:
        session.close()


def _copies(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _equal(before: list[Tensor], model: nn.Module) -> bool:
    now = list(model.parameters())
    return all(torch.equal(one, other) for one, other in zip(before, now, strict=True))
