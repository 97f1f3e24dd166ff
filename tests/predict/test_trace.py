"""Traces: their order, and the line through two of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from follow_models import (
    OPTIMIZERS,
    WIDTH,
    Rows,
    perceptron,
)
from torch import nn

from rightbatch import Workload
from rightbatch._predict.follow import Follower
from rightbatch._predict.reduction import reduction_buffers
from rightbatch._predict.simulate import simulate
from rightbatch._predict.trace import Family, Trace, with_frees_in_order
from rightbatch._predict.variant import Variant


def test_a_trace_survives_json() -> None:
    (trace,) = Follower(perceptron("adam")).traces([2], Variant())
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


def test_the_sum_of_a_real_recording_takes_the_buffers_that_were_recorded() -> None:
    # cuda-traces/lm_medium: a norm's weight gradient, (4, 256, 1024) summed over the first two.
    assert reduction_buffers([4, 256, 1024], [0, 1], 4) == (8_388_608, 32)
    assert reduction_buffers([8, 8], [0], 4) is None
    assert reduction_buffers([8, 8], [], 4) is None


def test_weights_cast_by_autocast_do_not_make_the_order_of_frees_random() -> None:
    """The copies are freed in the order of a hash table of pointers when autocast ends."""

    def factory() -> Workload:
        model = nn.Sequential(*(nn.Linear(WIDTH + i, WIDTH + i + 1) for i in range(24)))
        loss = lambda model, batch: model(batch).sum()  # noqa: E731
        return Workload(
            model, loss, OPTIMIZERS["sgd"](model.parameters()), Rows(WIDTH), precision="fp16"
        )

    variant = Variant(capability=8.0, inference=True)
    low, high, larger = Follower(factory).traces([2, 4, 7], variant)
    assert low.is_like(high) and low.is_like(larger)
    assert Family(2, 4, low, high).at(7).sizes == larger.sizes


def test_frees_are_sorted_within_a_run_and_not_over_a_boundary() -> None:
    order = [0, 1, 2, ~2, ~0, 3, ~3, ~1]
    assert with_frees_in_order(order, []) == (0, 1, 2, ~0, ~2, 3, ~1, ~3)
    assert with_frees_in_order(order, [4, 7]) == (0, 1, 2, ~2, ~0, 3, ~3, ~1)


def buffers_of(batch_size: int, rows: int, width: int) -> tuple[int, int]:
    return reduction_buffers([batch_size, rows, width], [0, 1, 2], 4) or (0, 0)


def is_linear(partial: list[int]) -> bool:
    return 2 * partial[2] == 5 * partial[1] - 3 * partial[0]  # of batch sizes 2, 4 and 7


@pytest.mark.parametrize("first", [True, False], ids=["always there", "there from 7 on"])
def test_the_buffers_of_sums_may_depend_on_the_batch_size_in_any_way(first: bool) -> None:
    """There are as many partial sums as blocks, and none for a few rows."""
    rows, width = next(
        (rows, width)
        for rows in range(64, 4096, 64)
        for width in (8, 24, 40)
        if (found := [buffers_of(n, rows, width)[0] for n in (2, 4, 7)])
        and [bool(partial) for partial in found] == [first, first, True]
        and not is_linear(found)
    )

    def factory() -> Workload:
        model = nn.Linear(width, width)
        made = OPTIMIZERS["sgd"](model.parameters())
        return Workload(model, lambda model, batch: model(batch).sum(), made, Rows(rows, width))

    low, high, larger, far = Follower(factory).traces([2, 4, 7, 61], Variant(capability=8.0))
    assert low.is_like(high) and low.is_like(larger)
    family = Family(2, 4, low, high)
    assert family.predicts(larger, 7)
    assert family.at(61) == far
    assert max(buffers_of(61, rows, width)) in far.sizes
    wrong = Trace(**(vars(larger) | {"sizes": tuple(size + 1 for size in larger.sizes)}))
    assert not family.predicts(wrong, 7)


def test_a_sum_without_buffers_takes_no_memory() -> None:
    def factory() -> Workload:
        model = nn.Linear(8, 8)
        made = OPTIMIZERS["sgd"](model.parameters())
        return Workload(model, lambda model, batch: model(batch).sum(), made, Rows(1, 8))

    (trace,) = Follower(factory).traces([2], Variant(capability=8.0))
    assert 0 in trace.sizes
    without = [e for e in trace.order if trace.sizes[e if e >= 0 else ~e]]
    assert simulate(trace) == simulate(replace(trace, order=tuple(without), phases=(), sums=()))
