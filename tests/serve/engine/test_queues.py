"""Queues: order, fair turns and loss contracts, against a round robin of one item at a time."""

from __future__ import annotations

import copy
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch._serve.engine.queues import NEVER, Item, Queues, Stream

FAST = settings(derandomize=True, max_examples=150)
WEIGHTS = st.sampled_from([0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 5.0])  # exact in binary


def queues_of(weights, contract="deadline", depth=None):
    queues = Queues()
    for number, weight in enumerate(weights):
        queues.add(Stream(str(number), contract, weight, depth))
    return queues


def put(queues, stream, number, deadline=NEVER):
    return queues.put(Item(str(stream), number, float(number), deadline))


def names(items):
    return [item.stream for item in items]


class RoundRobin:
    """Shreedhar and Varghese's algorithm as the paper has it, one turn after the other."""

    def __init__(self, weights):
        self.weights = {str(n): Fraction(weight) for n, weight in enumerate(weights)}
        self.waiting = {}
        self.active = []
        self.deficit = {}

    def put(self, stream, number):
        if not self.waiting.get(stream):
            self.active.append(stream)
            self.deficit[stream] = Fraction(0)
        self.waiting.setdefault(stream, []).append(number)

    def __iter__(self):
        while self.active:
            stream = self.active[0]
            self.deficit[stream] += self.weights[stream]
            while self.waiting[stream] and self.deficit[stream] >= 1:
                self.deficit[stream] -= 1
                number = self.waiting[stream].pop(0)
                if not self.waiting[stream]:
                    self.active.remove(stream)
                yield stream, number
            if self.waiting[stream]:
                self.active.append(self.active.pop(0))


@FAST
@given(
    st.lists(WEIGHTS, min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_turns_are_those_of_deficit_round_robin_whatever_the_batches(weights, puts, sizes):
    queues, oracle = queues_of(weights), RoundRobin(weights)
    for number, stream in enumerate(puts):
        put(queues, stream % len(weights), number)
        oracle.put(str(stream % len(weights)), number)
    expected = list(oracle)
    taken = []
    for turn in range(len(puts)):
        taken += queues.take(sizes[turn % len(sizes)])
    assert [(item.stream, item.payload) for item in taken] == expected
    assert len(queues) == 0


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("urgent"), st.integers(1, 6)),
    ),
    max_size=60,
)


@FAST
@given(
    st.lists(st.tuples(WEIGHTS, st.booleans()), min_size=1, max_size=4), ACTIONS, st.integers(0, 3)
)
def test_ahead_is_what_take_would_take_before_an_item_that_joins(streams, actions, joins):
    queues = Queues()
    for number, (weight, patient) in enumerate(streams):
        queues.add(Stream(str(number), "every" if patient else "deadline", weight))
    for number, (action, value) in enumerate(actions):
        if action == "put":
            put(queues, value % len(streams), number)
        else:
            queues.take(value, urgent_only=action == "urgent")
    joins = str(joins % len(streams))
    ahead = queues.ahead(queues[joins])
    after = copy.deepcopy(queues)
    after.put(Item(joins, "mine", 0.0, NEVER))
    order = [item.payload for item in after.take(len(after))]
    assert order.index("mine") == ahead


@FAST
@given(st.lists(WEIGHTS, min_size=2, max_size=4), st.integers(1, 7), st.integers(1, 120))
def test_shares_follow_the_weights_while_all_wait(weights, size, batches):
    # In DRR a stream is never further than its weight and an item from its share of a round.
    queues = queues_of(weights)
    served = Counter()
    for number in range(size * batches):
        for stream in range(len(weights)):
            put(queues, stream, number)
    for _ in range(batches):
        served.update(names(queues.take(size)))
    rounds = [served[str(number)] / weight for number, weight in enumerate(weights)]
    slack = max(1 + 1 / weight for weight in weights)
    assert max(rounds) - min(rounds) <= slack + 1


def test_the_smallest_weight_is_served_too():
    queues = queues_of([1.0, 1.0, 0.01])
    put(queues, 2, 0)
    served = []
    while "2" not in served:
        for stream in (0, 1):
            for number in range(8):
                put(queues, stream, number)
        served += names(queues.take(4))
    # A round of the others is two items: after a hundred rounds it has its turn.
    assert len(served) <= 2 * 101 + 4


def test_a_stream_alone_is_served_however_small_its_weight():
    queues = queues_of([1e-12])
    put(queues, 0, 0)
    put(queues, 0, 1)
    assert len(queues.take(5)) == 2


def test_who_was_idle_has_saved_nothing_up():
    queues = queues_of([3.0, 1.0])
    for number in range(20):
        put(queues, 1, number)
    queues.take(10)
    for number in range(20):
        put(queues, 0, number)
    # Of the next round it has its three items, and not those of the ten rounds it missed.
    assert Counter(names(queues.take(5)))["0"] <= 4


@FAST
@given(ACTIONS, st.lists(WEIGHTS, min_size=4, max_size=4))
def test_each_stream_keeps_its_order_and_counts_agree(actions, weights):
    queues = Queues()
    for number, weight in enumerate(weights):
        queues.add(Stream(str(number), "every" if number % 2 else "deadline", weight))
    taken = []
    for number, (action, value) in enumerate(actions):
        if action == "put":
            put(queues, value, number)
        else:
            waited = queues.urgent if action == "urgent" else len(queues)
            batch = queues.take(value, urgent_only=action == "urgent")
            assert len(batch) == min(value, waited)
            if action == "urgent":
                assert all(queues[item.stream].has_deadline for item in batch)
            taken += batch
        assert len(queues) == sum(len(stream.items) for stream in queues)
        assert queues.urgent == sum(len(s.items) for s in queues if s.has_deadline)
    taken += queues.take(len(queues))
    for stream in map(str, range(4)):
        mine = [item.payload for item in taken if item.stream == stream]
        assert mine == sorted(mine)
    assert len(taken) == sum(action == "put" for action, _ in actions)


def test_freshest_replaces_the_one_that_waits():
    queues = queues_of([1.0], contract="freshest", depth=1)
    assert put(queues, 0, 0) is None
    replaced = put(queues, 0, 1)
    assert replaced is not None
    assert replaced.payload == 0
    assert [item.payload for item in queues.take(5)] == [1]


def test_freshest_of_two_keeps_the_two_newest_in_order():
    queues = queues_of([1.0], contract="freshest", depth=2)
    replaced = [put(queues, 0, number) for number in range(5)]
    assert [item and item.payload for item in replaced] == [None, None, 0, 1, 2]
    assert [item.payload for item in queues.take(5)] == [3, 4]


def test_the_earliest_deadline_is_that_of_a_head_that_has_one():
    queues = Queues()
    queues.add(Stream("file", "every", 1.0))
    queues.add(Stream("camera", "deadline", 1.0))
    assert queues.earliest() is None
    queues.put(Item("file", 0, 0.0, 0.1))
    assert queues.earliest() is None
    queues.put(Item("camera", 1, 1.0, 3.0))
    queues.put(Item("camera", 2, 2.0, 4.0))
    head = queues.earliest()
    assert head is not None
    assert head.payload == 1
    assert queues.oldest() == 0.0


def test_nothing_waits_since_ever():
    assert Queues().oldest() == math.inf


def test_removing_a_stream_gives_what_waited_there_and_leaves_the_others():
    queues = queues_of([1.0, 1.0])
    for number in range(6):
        put(queues, number % 2, number)
    assert [item.payload for item in queues.remove("0")] == [0, 2, 4]
    assert "0" not in queues
    assert [item.payload for item in queues.take(9)] == [1, 3, 5]


def test_dropping_a_head_leaves_the_rest_in_order():
    queues = queues_of([1.0])
    for number in range(3):
        put(queues, 0, number, deadline=float(number))
    head = queues.earliest()
    assert head is not None
    queues.drop(head)
    assert [item.payload for item in queues.take(9)] == [1, 2]
    with pytest.raises(ValueError, match="not in"):
        queues.drop(head)
