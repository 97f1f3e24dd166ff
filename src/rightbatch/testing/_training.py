"""The contract of a `Training`, its sessions and its loops, which the verbs rely on."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest

from rightbatch._errors import UsageError
from rightbatch._fit.fit import fit
from rightbatch._predict.predict import predict
from rightbatch._training.protocol import Ability, Training, require
from rightbatch._tune.tune import tune
from rightbatch.testing._comparison import skip_without
from rightbatch.testing._training_loop import LoopTests
from rightbatch.testing._training_session import SessionTests


class TrainingContract(SessionTests, LoopTests):
    """Tests of a `Training`. Subclass it with a fixture `training`: a loaded `Training`.

    Every opening must give the same training. `sizes` are batch sizes that it can run, ascending;
    without 1 for a model with BatchNorm. `batch_size` is the size for loops; an epoch must have at
    least three such batches. The fixture `description` is the argument of the verbs, for a training
    that has to be loaded; default: `training`.
    """

    @pytest.fixture
    def description(self, training: Training) -> object:
        """The argument of `fit` and `tune`."""
        return training

    def test_it_can_be_sent_to_another_process(self, training: Training) -> None:
        sent = pickle.loads(cloudpickle.dumps(training))
        assert sent.abilities == training.abilities
        assert sent.base_batch == training.base_batch

    def test_a_verb_is_refused_by_the_name_of_the_ability_that_is_missing(
        self, training: Training
    ) -> None:
        assert isinstance(training, Training)
        assert training.integration
        for ability in frozenset(Ability) - training.abilities:
            with pytest.raises(UsageError) as refused:
                require(training, ability, "verb")
            assert ability.value in str(refused.value)
            assert training.integration in str(refused.value)
        for ability in training.abilities:
            require(training, ability, "verb")

    def test_predict_goes_through_it(self, training: Training, description: object) -> None:
        skip_without(training, Ability.FOLLOW)
        size = self.sizes[-1]
        found = predict(description, batch=size, memory="8GiB", remedies=False, progress=False)
        assert found.allocated_peak_bytes > found.breakdown["parameters"] > 0
        assert (found.largest_batch_size or 0) >= self.sizes[0]

    def test_fit_and_tune_go_through_it(self, training: Training, description: object) -> None:
        skip_without(training, Ability.LOOP)
        options: dict[str, Any] = {"max_batch": 8, "device": "cpu", "progress": False}
        largest = fit(description, **options)
        assert largest.batch_size == 8
        runnable = [probe for probe in largest.probes if probe.batch_size >= self.sizes[0]]
        assert {probe.outcome for probe in runnable} == {"ok"}
        plan = tune(description, largest=largest, budget=2, **options)
        assert 1 <= plan.batch_size <= 8
        assert len(plan.seen.at_weights) >= 2
        assert plan.expected[0].examples_per_second > 0
