"""The decision against closed forms: where time to target is least, and what cannot be told."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._noise import NoiseWindow
from rightbatch._tune.decision import NEAR, decide
from rightbatch._tune.throughput import Network, Throughput, spread
from rightbatch._workload.sizes import sizes_between
from rightbatch._workload.workload import StepSeconds

SIZES = [2**n for n in range(11)]


def samples(fixed: float, per_example: float) -> dict[int, list[StepSeconds]]:
    """Steps that take `fixed` seconds and `per_example` for each example, all alike."""
    return {m: [StepSeconds(0.0, fixed + per_example * m, 0.0)] * 15 for m in SIZES}


def observed(noise_scale: float) -> NoiseWindow:
    return NoiseWindow(((1.0, noise_scale),) * 8, ((1.0, noise_scale),) * 8)


@given(st.floats(1e-4, 1e-1), st.floats(1e-5, 1e-2), st.floats(4, 5000))
def test_the_fastest_size_is_beside_the_optimum_of_the_closed_form(
    fixed: float, per_example: float, noise_scale: float
) -> None:
    """(1 + B/φ)(α + βB)/B is least at B = √(αφ/β)."""
    found = decide(Throughput(samples(fixed, per_example)), observed(noise_scale), SIZES)
    best = math.sqrt(fixed * noise_scale / per_example)

    def seconds(size: float) -> float:
        return (1 + size / noise_scale) * (fixed + per_example * size) / size

    inside = min(max(best, SIZES[0]), SIZES[-1])
    # A grid of powers of 2 and the preference for smaller sizes cost at most this.
    grid = min(seconds(size) for size in SIZES)
    assert seconds(found.batch_size) <= NEAR * 1.02 * grid
    assert seconds(inside) <= grid * (1 + 1e-9)


def test_relative_times_are_those_of_the_closed_form() -> None:
    found = decide(Throughput(samples(0.01, 0.001)), observed(50.0), SIZES)
    chosen = found.chosen

    def seconds(size: int) -> float:
        return (1 + size / 50) * (0.01 + 0.001 * size) / size

    for each in found.expected:
        expected = seconds(each.batch_size) / seconds(chosen.batch_size)
        assert each.relative_time == pytest.approx(expected, rel=0.05)
        assert each.low <= each.relative_time <= each.high
        assert each.efficiency == pytest.approx(1 / (1 + each.batch_size / 50), rel=0.05)
    assert chosen.relative_time == 1


def test_of_sizes_that_cannot_be_told_apart_the_smallest_is_chosen() -> None:
    flat = {m: [StepSeconds(0, 0.001 * m * (1 + 0.05 * i), 0) for i in (-1, 0, 1)] for m in SIZES}
    found = decide(Throughput(flat), observed(100_000.0), SIZES)
    assert found.batch_size == 1
    assert len(found.alike) > 5


def test_a_gradient_lost_in_noise_is_no_order_to_grow() -> None:
    pairs = ((-1.0, 40.0), (1.0, 40.0), (-0.5, 40.0), (0.6, 40.0))
    lost = NoiseWindow(pairs, pairs)
    flat = {m: [StepSeconds(0, 0.001 * m, 0.0001)] * 5 for m in SIZES}
    found = decide(Throughput(flat), lost, SIZES)
    assert found.batch_size < 64


def test_nothing_above_what_leaves_enough_updates_is_chosen_though_it_is_shown() -> None:
    found = decide(Throughput(samples(1.0, 1e-6)), observed(1e6), SIZES, most=16)
    assert found.batch_size == 16
    assert found.expected[-1].batch_size == 1024
    assert found.expected[-1].relative_time < 1


def test_a_price_per_second_moves_the_choice() -> None:
    throughput = Throughput(samples(0.02, 0.001))
    plain = decide(throughput, observed(200.0), SIZES)
    dear = decide(
        throughput,
        observed(200.0),
        SIZES,
        price=lambda steps: 1 + steps.micro_batch_size**2,
    )
    assert dear.batch_size < plain.batch_size


def test_seconds_to_the_target_follow_from_one_training_that_reached_it() -> None:
    found = decide(
        Throughput(samples(0.0, 0.001)),
        observed(64.0),
        SIZES,
        examples_to_target=(16, 10_000),
    )
    by_size = {each.batch_size: each.seconds for each in found.expected}
    assert by_size[16] == pytest.approx(10.0, rel=0.02)
    assert by_size[64] == pytest.approx(10.0 * (1 + 64 / 64) / (1 + 16 / 64), rel=0.1)


def test_a_batch_that_is_larger_than_any_micro_batch_is_accumulated() -> None:
    times = {4: [StepSeconds(0, 0.4, 0.05)] * 3, 8: [StepSeconds(0, 0.6, 0.05)] * 3}
    steps = Throughput(times).steps(24)
    assert (steps.micro_batch_size, steps.accumulation) == (8, 3)
    assert float(steps.seconds.median()) == pytest.approx(3 * 0.6 + 0.05)


def test_the_rest_of_a_batch_costs_what_its_size_costs() -> None:
    times = {2: [StepSeconds(0, 0.2, 0)] * 3, 8: [StepSeconds(0, 0.8, 0)] * 3}
    assert float(Throughput(times).steps(13).seconds.median()) == pytest.approx(0.8 + 0.5)


def test_where_smaller_parts_are_faster_they_are_taken() -> None:
    times = {4: [StepSeconds(0, 0.1, 0)] * 3, 16: [StepSeconds(0, 1.0, 0)] * 3}
    assert Throughput(times).steps(16).micro_batch_size == 4


@pytest.mark.parametrize(("workers", "seconds"), [(0, 1.0 + 2.0), (1, 2.0), (4, 1.0)])
def test_loading_comes_before_a_step_or_beside_it(workers: int, seconds: float) -> None:
    times = {8: [StepSeconds(2.0, 0.9, 0.1)] * 3}
    throughput = Throughput(times, workers=workers)
    assert float(throughput.steps(8).seconds.median()) == pytest.approx(seconds)
    assert throughput.waits_for_loading(8) == pytest.approx(2.0 / max(workers, 1))


def test_several_devices_share_a_batch_and_exchange_their_gradients() -> None:
    times = {m: [StepSeconds(0, 0.1 * m, 0)] * 3 for m in SIZES}
    network = Network(devices=4, bandwidth=1e9, gradient_bytes=10**8)
    seconds = Throughput(times, network=network).steps(64).seconds
    exchange = 2 * 3 / 4 * 0.1
    assert float(seconds.min()) == pytest.approx(1.6)
    assert float(seconds.max()) == pytest.approx(1.6 + exchange)


def test_an_interval_of_a_median_shrinks_with_samples_and_needs_three() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [
        StepSeconds(0, 1 + 0.1 * float(torch.randn((), generator=generator)), 0) for _ in range(400)
    ]
    assert spread(steps[:2]) == math.inf
    assert spread(steps) < spread(steps[:20]) < 0.2
    # The standard error of the median of 400 normal samples is 0.1 · √(π/2)/20.
    assert spread(steps) == pytest.approx(1.96 * 0.1 * math.sqrt(math.pi / 2) / 20, rel=0.5)


def test_sizes_between_are_powers_of_2_and_the_ends() -> None:
    assert sizes_between(1, 1) == [1]
    assert sizes_between(3, 20) == [3, 4, 8, 16, 20]


def test_what_lies_between_the_two_noise_scales_is_weighed() -> None:
    apart = NoiseWindow(((1.0, 10.0),) * 8, ((1.0, 1000.0),) * 8)
    found = decide(Throughput(samples(0.01, 0.001)), apart, SIZES)
    assert found.noise_scale == pytest.approx(100, rel=0.2)
    low, high = (decide(Throughput(samples(0.01, 0.001)), observed(n), SIZES) for n in (10, 1000))
    assert low.batch_size < found.batch_size < high.batch_size
    widest = max(found.expected, key=lambda each: each.high - each.low)
    assert widest.high - widest.low > 1


def test_without_an_average_the_noise_scale_is_within_a_factor_of_two() -> None:
    found = decide(Throughput(samples(0.01, 0.001)), NoiseWindow(((1.0, 50.0),) * 8), SIZES)
    assert found.noise_scale == pytest.approx(50, rel=0.1)
