"""The tests of `TrainingContract` for sessions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from rightbatch._training.protocol import Ability, Session, Training
from rightbatch.testing._comparison import copies, equal, skip_without


class SessionTests:
    """Tests of a training's session."""

    sizes: ClassVar[tuple[int, ...]] = (1, 2, 3)

    @pytest.fixture
    def session(self, training: Training) -> Iterator[Session]:
        """A new training session."""
        skip_without(training, Ability.STEP)
        opened = training.session("cpu", seed=0, inference=False)
        yield opened
        opened.close()

    @pytest.fixture
    def evaluation(self, training: Training) -> Iterator[Session]:
        """A new inference session."""
        skip_without(training, Ability.EVALUATE)
        opened = training.session("cpu", seed=0, inference=True)
        yield opened
        opened.close()

    def test_examples_are_a_count_or_unknown(self, session: Session) -> None:
        examples = session.examples
        assert examples is None or (isinstance(examples, int) and examples > 0)

    def test_whether_batches_differ_in_shape_is_known(self, session: Session) -> None:
        assert session.varies in (True, False)

    def test_it_runs_growing_sizes_and_small_ones_again(self, session: Session) -> None:
        for size in (*self.sizes, self.sizes[0], self.sizes[0]):
            session.step(size)
            session.step(size)
            session.evaluate(size)

    def test_an_evaluation_says_how_many_examples_it_held(self, session: Session) -> None:
        for size in self.sizes:
            session.step(size)
            held = session.evaluate(size)
            assert isinstance(held, int)
            assert held > 0

    def test_a_step_trains_whatever_was_evaluated_before(self, session: Session) -> None:
        model = session.modules()[0]
        session.step(self.sizes[-1])
        session.evaluate(self.sizes[-1])
        before = copies(model)
        session.step(self.sizes[-1])
        assert not equal(before, model), "a step left every parameter as it was"

    def test_a_timed_step_trains_and_its_parts_are_its_time(self, session: Session) -> None:
        model = session.modules()[0]
        session.timed_step(self.sizes[-1])
        before, began = copies(model), time.perf_counter()
        seconds = session.timed_step(self.sizes[-1])
        parts = (seconds.loading, seconds.computing, seconds.updating)
        assert all(part > 0 for part in parts)
        assert sum(parts) <= time.perf_counter() - began
        assert not equal(before, model), "a timed step left every parameter as it was"

    def test_an_evaluation_changes_no_parameter_and_leaves_no_gradient(
        self, session: Session
    ) -> None:
        model = session.modules()[0]
        before = copies(model)
        session.evaluate(self.sizes[-1])
        assert equal(before, model), "an evaluation changed a parameter"
        assert all(p.grad is None for p in model.parameters()), "it computed gradients"

    def test_an_evaluation_leaves_gradients_enabled(self, session: Session) -> None:
        session.evaluate(self.sizes[0])
        assert torch.is_grad_enabled()

    def test_closing_twice_is_closing_once(self, session: Session) -> None:
        session.step(self.sizes[0])
        session.evaluate(self.sizes[0])
        session.close()
        session.close()

    def test_a_session_that_never_ran_can_be_closed(self, session: Session) -> None:
        session.close()

    def test_inference_runs_every_size_and_changes_no_parameter(self, evaluation: Session) -> None:
        modules = evaluation.modules()
        before = [copies(module) for module in modules]
        for size in self.sizes:
            assert evaluation.evaluate(size) > 0
        for kept, module in zip(before, modules, strict=True):
            assert equal(kept, module), "an evaluation changed a parameter"
            assert all(p.grad is None for p in module.parameters()), "it computed gradients"
        assert torch.is_grad_enabled()
