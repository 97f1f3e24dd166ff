"""The worker's side of following: traces of a step, request after request."""

from __future__ import annotations

import gc

from rightbatch._predict.build import limit_building
from rightbatch._predict.follow import Follower
from rightbatch._predict.follow_framework import FrameworkFollower
from rightbatch._predict.forked_traces import AnyFollower, answers
from rightbatch._predict.variant import Variant
from rightbatch._training.protocol import Ability, Training, require
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker import Header
from rightbatch._worker.bootstrap import Channel
from rightbatch._worker.failure import failure


def run(channel: Channel, header: Header, training: Training) -> None:
    """Follow the step in the variants that commands ask for; nothing of it runs on a device."""
    try:
        limit_building()
        follower: AnyFollower
        if isinstance(training, WorkloadTraining):
            follower = Follower(training.factory, seed=header.seed)
        else:
            require(training, Ability.FOLLOW, "predict")
            follower = FrameworkFollower(training)
    except BaseException as error:
        channel.failed(error)
        return
    gc.freeze()  # what was imported is not garbage; every trace collects before it begins
    while command := channel.receive():
        tasks = [(task.pop("batch_size"), Variant(**task)) for task in command["follow"]]
        found = answers(follower, tasks, failure)
        channel.send(
            event="follow",
            answers=found,
            how=follower.how,
            notes=follower.notes,
            examples=follower.examples,
            at_least=follower.at_least,
        )
