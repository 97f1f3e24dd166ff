"""The contracts notice what they are there for: one broken implementation for each promise."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rightbatch.testing
from rightbatch._device import Reading
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import Ability, LoopPlan, Training
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._workload.workload import StepSeconds
from rightbatch.testing import DeviceContract, TrainingContract

MIB = 2**20


class Ideal:
    """A session of one weight."""

    examples: Any = 5
    varies = False

    def __init__(self) -> None:
        self.model = nn.Linear(2, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.closed = 0

    def step(self, batch_size: int) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(batch_size, 2)).mean().backward()
        self.optimizer.step()

    def timed_step(self, batch_size: int) -> StepSeconds:
        began = time.perf_counter()
        self.step(batch_size)
        third = (time.perf_counter() - began) / 3
        return StepSeconds(third, third, third)

    def modules(self) -> list[nn.Module]:
        return [self.model]

    def evaluate(self, batch_size: int) -> Any:
        return batch_size

    def close(self) -> None:
        self.closed += 1


class IdealTraining(Training):
    integration = "ideal"
    abilities = frozenset({Ability.STEP, Ability.EVALUATE})

    def session(self, device: str, *, seed: int, inference: bool) -> Any:
        return Ideal()


class TestTheIdealTraining(TrainingContract):
    @pytest.fixture
    def training(self) -> Training:
        return IdealTraining()


class NoExamples(Ideal):
    examples = 0


class OnlyOneSize(Ideal):
    def step(self, batch_size: int) -> None:
        assert batch_size == 1
        super().step(batch_size)


class SaysNothing(Ideal):
    def evaluate(self, batch_size: int) -> Any:
        return None


class HeldNothing(Ideal):
    def evaluate(self, batch_size: int) -> int:
        return 0


class DoesNotTrain(Ideal):
    def step(self, batch_size: int) -> None:
        self.model(torch.ones(batch_size, 2)).mean().backward()


class TimesAnotherStep(Ideal):
    def timed_step(self, batch_size: int) -> StepSeconds:
        return StepSeconds(1.0, 1.0, 1.0)


class OnlyTimes(Ideal):
    def timed_step(self, batch_size: int) -> StepSeconds:
        return StepSeconds(1e-9, 1e-9, 1e-9)


class TrainsInEvaluation(Ideal):
    def evaluate(self, batch_size: int) -> int:
        self.step(batch_size)
        self.optimizer.zero_grad()
        return batch_size


class ComputesGradients(Ideal):
    def evaluate(self, batch_size: int) -> int:
        self.model(torch.ones(batch_size, 2)).mean().backward()
        return batch_size


class LeavesGradientsOff(Ideal):
    def evaluate(self, batch_size: int) -> int:
        torch.set_grad_enabled(False)
        return batch_size


class ClosesOnce(Ideal):
    def close(self) -> None:
        super().close()
        assert self.closed == 1


class ClosesOnlyWhatRan(Ideal):
    def close(self) -> None:
        assert self.model.weight.grad is not None


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (NoExamples, "test_examples_are_a_count_or_unknown"),
        (OnlyOneSize, "test_it_runs_growing_sizes_and_small_ones_again"),
        (SaysNothing, "test_an_evaluation_says_how_many_examples_it_held"),
        (HeldNothing, "test_an_evaluation_says_how_many_examples_it_held"),
        (DoesNotTrain, "test_a_step_trains_whatever_was_evaluated_before"),
        (TimesAnotherStep, "test_a_timed_step_trains_and_its_parts_are_its_time"),
        (OnlyTimes, "test_a_timed_step_trains_and_its_parts_are_its_time"),
        (TrainsInEvaluation, "test_an_evaluation_changes_no_parameter_and_leaves_no_gradient"),
        (ComputesGradients, "test_an_evaluation_changes_no_parameter_and_leaves_no_gradient"),
        (LeavesGradientsOff, "test_an_evaluation_leaves_gradients_enabled"),
        (ClosesOnce, "test_closing_twice_is_closing_once"),
        (ClosesOnlyWhatRan, "test_a_session_that_never_ran_can_be_closed"),
    ],
)
def test_a_session_that_breaks_a_promise_fails_the_contract(kind: type[Ideal], test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(TestTheIdealTraining(), test)(kind())
    torch.set_grad_enabled(True)


def tiny_workload() -> rightbatch.Workload:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    data = TensorDataset(torch.randn(24, 2), torch.randn(24, 1))
    return rightbatch.Workload(
        model,
        lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        torch.optim.SGD(model.parameters(), lr=0.1),
        data,
        evaluation_data=data,
    )


class DrawsInEvaluation(WorkloadLoop):
    def evaluate(self) -> dict[str, float]:
        torch.rand(1)
        return super().evaluate()


class TrainsInWindows(WorkloadLoop):
    def micro_batches(self, most: int | None = None) -> Iterator[Any]:
        for part in super().micro_batches(most):
            with torch.no_grad():
                self.model.weight += 1.0
            yield part


class NeverStops(WorkloadLoop):
    def stop(self, reason: str) -> None: ...


class ForgetsFactors(WorkloadLoop):
    def __init__(self, workload: Any, plan: LoopPlan, *arguments: Any) -> None:
        super().__init__(workload, replace(plan, factors=None), *arguments)


class ForgetsTheEnd(WorkloadLoop):
    def run(self) -> Any:
        self._observers.end = lambda loop: None
        return super().run()


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (DrawsInEvaluation, "test_an_evaluation_in_a_loop_leaves_weights_and_random_states"),
        (TrainsInWindows, "test_noise_windows_leave_the_training_as_it_is"),
        (NeverStops, "test_a_loop_trains_and_stops_after_the_step_that_an_observer_names"),
        (ForgetsFactors, "test_factors_scale_the_learning_rate"),
        (ForgetsTheEnd, "test_observers_are_called_at_the_boundaries_of_steps"),
    ],
)
def test_a_loop_that_breaks_a_promise_fails_the_contract(
    kind: type[WorkloadLoop], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = getattr(TestTheIdealTraining(), test)
    check(WorkloadTraining(tiny_workload))
    monkeypatch.setattr("rightbatch._training.loop.WorkloadLoop", kind)
    with pytest.raises(AssertionError):
        check(WorkloadTraining(tiny_workload))


class Accountant:
    """A device that knows every byte, since the contract below only writes numbers into it."""

    name = "cpu"
    charge_variation: float = 0.0

    def __init__(self) -> None:
        self.held = self.peak = 0
        self.limit: int | None = None

    def prepare(self) -> None: ...

    def capacity(self) -> Any:
        return 2**40

    def enforce(self, limit: int) -> Any:
        self.limit = limit
        return True

    def reset_peak(self) -> None:
        self.peak = self.held

    def read(self) -> Reading:
        return Reading(self.peak, self.peak, self.peak)

    def add(self, size: int) -> None:
        if self.limit is not None and self.held + size > self.limit:
            raise MemoryError
        self.held += size
        self.peak = max(self.peak, self.held)


class Contract(DeviceContract):
    """The contract on an accountant: allocating is adding, which takes no memory."""

    def _allocate(self, device: Any, times: int = 1) -> Any:
        device.add(times * self.allocation)
        return SimpleNamespace(device=device, nbytes=times * self.allocation)

    def _free(self, tensor: Any) -> None:
        tensor.device.held -= tensor.nbytes


class TestTheIdealDevice(Contract):
    @pytest.fixture
    def device(self) -> Any:
        return Accountant()


class Unnamed(Accountant):
    name = "abacus"


class Random(Accountant):
    charge_variation = 1.5


class Small(Accountant):
    def capacity(self) -> int:
        return MIB


class Blind(Accountant):
    def read(self) -> Reading:
        return Reading(0, 0)


class Generous(Accountant):
    def read(self) -> Reading:
        return Reading(2 * self.peak, 2 * self.peak)


class Undercharging(Accountant):
    def read(self) -> Reading:
        return Reading(self.peak, self.peak // 2)


class Forgetful(Accountant):
    def read(self) -> Reading:
        return Reading(self.held, self.held)


class ForgetsWhenRead(Accountant):
    def read(self) -> Reading:
        reading = super().read()
        self.peak = self.held
        return reading


class Unforgetting(Accountant):
    def reset_peak(self) -> None: ...


class UnforgettingCharge(Accountant):
    def __init__(self) -> None:
        super().__init__()
        self.ever = 0

    def read(self) -> Reading:
        self.ever = max(self.ever, self.peak)
        return Reading(self.peak, self.ever)


class ForgetsWhatIsHeld(Accountant):
    def reset_peak(self) -> None:
        self.peak = 0


class Lax(Accountant):
    def enforce(self, limit: int) -> bool:
        return True


class Strict(Accountant):
    def enforce(self, limit: int) -> bool:
        return super().enforce(limit // 2)


class Undecided(Accountant):
    def enforce(self, limit: int) -> Any:
        return None


class Leaking(Accountant):
    """What it refuses is counted all the same."""

    def add(self, size: int) -> None:
        if self.limit is not None and self.held + size > self.limit:
            self.held += size
            raise MemoryError
        super().add(size)


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Unnamed, "test_torch_knows_it_by_its_name"),
        (Random, "test_its_charge_repeats_to_a_share_of_the_limit"),
        (Small, "test_it_has_a_capacity_in_bytes"),
        (Blind, "test_what_is_allocated_appears_in_peak_and_charge"),
        (Generous, "test_what_is_allocated_appears_in_peak_and_charge"),
        (Undercharging, "test_what_is_allocated_appears_in_peak_and_charge"),
        (
            Undercharging,
            "test_the_charge_is_no_less_than_the_peak_nor_the_peak_than_live_tensors",
        ),
        (Forgetful, "test_a_peak_outlives_what_made_it"),
        (ForgetsWhenRead, "test_a_peak_outlives_what_made_it"),
        (Unforgetting, "test_a_reset_forgets_the_peak_and_the_charge"),
        (UnforgettingCharge, "test_a_reset_forgets_the_peak_and_the_charge"),
        (ForgetsWhatIsHeld, "test_what_is_held_through_a_reset_still_counts"),
        (Lax, "test_a_limit_that_is_enforced_fails_above_it_and_only_there"),
        (Strict, "test_a_limit_that_is_enforced_fails_above_it_and_only_there"),
        (Undecided, "test_a_limit_that_is_enforced_fails_above_it_and_only_there"),
        (Leaking, "test_a_limit_that_is_enforced_fails_above_it_and_only_there"),
    ],
)
def test_a_device_that_breaks_a_promise_fails_the_contract(
    kind: type[Accountant], test: str
) -> None:
    with pytest.raises((AssertionError, MemoryError, RuntimeError)):
        getattr(Contract(), test)(kind())


def test_every_public_name_can_be_had_and_no_other() -> None:
    names = rightbatch.testing.__all__
    assert names == sorted(set(names))
    for name in names:
        assert getattr(rightbatch.testing, name).__name__ == name
        if name.endswith("Contract"):
            assert f"`{name}`" in (rightbatch.testing.__doc__ or "")
    with pytest.raises(AttributeError, match="has no attribute 'Contract'"):
        rightbatch.testing.Contract  # noqa: B018


def test_only_the_contracts_of_serve_need_numpy() -> None:
    code = """
import sys
sys.modules["numpy"] = None
from rightbatch.testing import DeviceContract, IntegrationContract, TrainingContract
try:
    from rightbatch.testing import ModelContract
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("numpy is not installed; `pip install 'rightbatch[serve]'`")
