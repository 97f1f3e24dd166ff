"""The largest length, image or other parameter at which a batch fits into a GPU."""

from __future__ import annotations

from typing import Any

from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._predict.follow_process import FollowProcess
from rightbatch._predict.followed_step import FollowedStep
from rightbatch._predict.largest_value import MULTIPLE, NoEffectError, largest_with_room
from rightbatch._predict.options import PredictOptions
from rightbatch._progress import Live
from rightbatch._training.protocol import Training
from rightbatch._training.resolve import resolve
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._units import format_bytes
from rightbatch._worker import header_for
from rightbatch._workload.factory import CalledWith

_START = 512
"""The first value tried."""


def solve(
    workload: object, options: PredictOptions, spec: dict[str, Any], limit: int, capability: float
) -> int:
    """Return the largest multiple of 32 of `options.solve` at which the batch fits, within 2%.

    Raises:
        UsageError: if there is no such parameter, it changes nothing, or the step needs values.
        NothingFitsError: if the batch does not fit at the smallest value.
    """
    name = options.solve
    assert name is not None

    def room(value: int) -> int:
        live.show(f"trying {name} {value}")
        training = with_value(workload, name, value, spec)
        header = header_for(
            training, device="cpu", margin=0.0, seed=options.seed, inference=options.inference
        )
        with FollowProcess(header) as process:
            step = FollowedStep(
                process,
                processes=options.processes,
                sharding=options.sharding,
                inference=options.inference,
                at_one_size=True,
            )
            left = step.room(options.batch, limit, capability)
        if step.how == "real":
            raise UsageError(
                f"the largest {name} is not searched for a step that needs real tensors, which may "
                f"not fit into this machine; predict at values of your choice"
            )
        return left

    with Live("predict", enabled=options.progress) as live:
        live.stage(f"searching for the largest {name}")
        try:
            found = largest_with_room(room, _START)
        except NoEffectError:
            raise UsageError(f"the memory of a step does not depend on {name}") from None
    if not found:
        raise NothingFitsError(
            f"nothing fits: a batch of {options.batch} at {name} {MULTIPLE} needs more than "
            f"{format_bytes(limit)}",
            error_type="OutOfMemory",
            error_message="the simulated allocator ran out of memory",
        )
    return found


def with_value(workload: object, name: str, value: int, spec: dict[str, Any]) -> Training:
    """Return the training with a value of one of its parameters.

    Raises:
        UsageError: if it is not a factory.
    """
    training = resolve(workload, **spec)
    if not isinstance(training, WorkloadTraining):
        raise UsageError(
            f"--solve {name} takes a function that builds a Workload, with an argument {name!r}; "
            f"predict {training.integration} at values of your choice"
        )
    return WorkloadTraining(CalledWith(training.factory, name, value))
