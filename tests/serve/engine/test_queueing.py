"""The closed forms, against a server that is simulated the plain way."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from servers import greedy

from rightbatch.testing._queueing import capacity, largest_batch, latency_quantile, mean_latency

A, B = 1e-3, 4e-3


def seconds(size):
    return A * size + B


def moments(rate, count, seed=0):
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum().tolist()


@pytest.mark.parametrize("load", [0.5, 0.65, 0.8])
def test_the_mean_latency_is_that_of_a_server_without_cap(load):
    latencies = greedy(moments(load / A, 100_000), seconds)
    assert statistics.fmean(latencies) == pytest.approx(mean_latency(A, B, load / A), rel=0.02)


def test_at_light_load_the_mean_latency_is_an_upper_bound():
    latencies = greedy(moments(0.2 / A, 50_000), seconds)
    assert statistics.fmean(latencies) < mean_latency(A, B, 0.2 / A)


@pytest.mark.parametrize("rate", [1 / A, 2 / A, -1.0])
def test_a_mean_latency_that_does_not_exist_is_refused(rate):
    with pytest.raises(ValueError, match="below 1000 items per second"):
        mean_latency(A, B, rate)


@pytest.mark.parametrize(("cap", "load"), [(1, 0.7), (4, 0.75), (12, 0.6)])
def test_quantiles_of_the_markov_chain_are_those_of_a_server(cap, load):
    rate = load * capacity(A, B, cap)
    latencies = greedy(moments(rate, 100_000), seconds, cap)
    for q in (0.5, 0.99):
        expected = latency_quantile(seconds, cap, rate, q)
        assert float(np.quantile(latencies, q)) == pytest.approx(expected, rel=0.04)


def test_one_by_one_the_chain_is_that_of_a_queue_with_fixed_service():
    # Erlang: the waiting time of M/D/1 is below t, where t < s, with (1 - load) exp(rate t).
    load, service = 0.5, 1.0
    median = latency_quantile(lambda size: service, 1, load / service, 0.6)
    waited = np.log(0.6 / (1 - load)) / (load / service)
    assert median == pytest.approx(service + waited, rel=0.03)


def test_a_rate_above_capacity_has_no_quantile():
    with pytest.raises(ValueError, match="below 750 items per second"):
        latency_quantile(seconds, 12, 751)


def test_capacity_is_where_the_queue_of_a_server_starts_to_grow():
    limit = capacity(A, B, 12)
    assert limit == pytest.approx(750)
    below = greedy(moments(0.97 * limit, 40_000), seconds, 12)
    above = greedy(moments(1.03 * limit, 40_000), seconds, 12)
    # Above it the last waits for the excess of all; below it for no more than it had to before.
    assert above[-1] == pytest.approx(0.03 * 40_000 / (1.03 * limit), rel=0.5)
    assert below[-1] < 0.3 * above[-1]
    assert capacity(A, B) == pytest.approx(1 / A)


@pytest.mark.parametrize("latency", [0.02, 0.033, 0.1])
def test_two_of_the_largest_batch_take_just_the_target(latency):
    size = largest_batch(A, B, latency)
    assert 2 * seconds(size) == pytest.approx(latency)
