"""Other people's trainings in one process: each step of each verb, or a refusal by name.

`python -m benchmarks.zoo` runs the verbs themselves, with their processes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import kinds_batches
import kinds_data
import kinds_losses
import kinds_models
import kinds_optimizers
import pytest
import torch

from rightbatch import UsageError
from rightbatch._predict.follow import Follower
from rightbatch._predict.variant import Variant
from rightbatch._training.distributed import Processes
from rightbatch._training.protocol import LoopPlan, Observer
from rightbatch._training.session import InferenceSession, WorkloadSession
from rightbatch._training.workload_training import WorkloadTraining

KINDS: dict[str, Callable[[], Any]] = {
    **kinds_data.KINDS,
    **kinds_batches.KINDS,
    **kinds_models.KINDS,
    **kinds_losses.KINDS,
    **kinds_optimizers.KINDS,
}
SIZES = (6, 12)


def fit(factory: Callable[[], Any]) -> None:
    session = WorkloadSession(factory(), "cpu")
    for size in SIZES:
        for _ in range(3):
            session.step(size)
    session.evaluate(SIZES[0])
    session.timed_step(SIZES[0])
    session.close()


def inference(factory: Callable[[], Any]) -> None:
    session = InferenceSession(factory(), "cpu")
    for size in SIZES:
        session.evaluate(size)
    session.close()


class OneEpoch(Observer):
    def on_epoch(self, loop: Any) -> None:
        loop.stop("after one epoch")


def train(factory: Callable[[], Any]) -> None:
    """Train an epoch in parts, and go on from its state in another loop."""
    plan = LoopPlan(batch_size=12, epochs=2, micro_batch_size=6)
    alone = Processes(torch.device("cpu"))
    with WorkloadTraining(factory).loop(plan, alone, [OneEpoch()]) as loop:
        loop.run()
        state = loop.state_dict()
    with WorkloadTraining(factory).loop(plan, alone, []) as loop:
        loop.load_state_dict(state)
        found = loop.run()
        metrics = found.metrics | loop.evaluate()
    assert all(map(math.isfinite, metrics.values())), metrics


def follow(factory: Callable[[], Any]) -> None:
    """The step that `predict` follows has memory that grows with the batch."""
    small, large = Follower(factory).traces(SIZES, Variant(capability=8.6))
    assert len(small.sizes) > 10
    assert sum(large.sizes) >= sum(small.sizes)


VERBS = {each.__name__: each for each in (fit, inference, train, follow)}
BATCHES = "items are whole batches.*rightbatch fit --"
OUTSIDE = "parameters that are not the model's.*model.criterion = criterion"
CLOSURE = r"needs a closure.*rightbatch fit --"
SCALAR = r"loss\(model, batch\) returns a scalar tensor, not"
REFUSED: dict[str, dict[str, str]] = {
    "streams": {"train": "map-style data set.*rightbatch.Elastic"},
    "endless_streams": {"train": "map-style data set.*rightbatch.Elastic"},
    "streams_of_batches": {
        "fit": BATCHES,
        "inference": BATCHES,
        "follow": BATCHES,
        "train": "map-style data set.*rightbatch.Elastic",
    },
    "batches_as_items": dict.fromkeys(VERBS, BATCHES),
    "loaders_as_data": dict.fromkeys(VERBS, "data=loader.dataset and collate=loader.collate_fn"),
    "dictionaries_of_data": dict.fromkeys(VERBS, r"keys 'train', 'test'.*data\[\"train\"\]"),
    "weights_of_the_loss": dict.fromkeys(["fit", "train", "follow"], OUTSIDE),
    "learned_factors": dict.fromkeys(["fit", "train", "follow"], OUTSIDE),
    "criteria_as_losses": dict.fromkeys(VERBS, r"CrossEntropyLoss.*criterion\(model\(batch"),
    "exported": {"inference": r"size\(\)\[0\] == 6.*pass predict="},
    "schedules_of_ones_own": {"train": "Schedule, which has no state_dict.*LambdaLR"},
    "tensors_of_other_lengths": {"train": r"leading dimensions \[7, 12\].*count=.*split="},
    "on_meta": dict.fromkeys(VERBS, "meta device.*to_empty"),
    "data_parallel": {"train": "nn.DataParallel; use DistributedDataParallel"},
    "lbfgs": dict.fromkeys(["fit", "train", "follow"], CLOSURE),
    "sharpness_aware": dict.fromkeys(["fit", "train", "follow"], CLOSURE),
    "several_optimizers": dict.fromkeys(VERBS, "got list.*several optimizers.*rightbatch fit --"),
    "losses_in_tuples": dict.fromkeys(["fit", "train", "follow"], f"{SCALAR} tuple"),
    "losses_as_numbers": dict.fromkeys(["fit", "train", "follow"], f"{SCALAR} float"),
    "losses_without_gradient": dict.fromkeys(["fit", "train", "follow"], "without a gradient"),
    "groups_added_later": {"train": "2 parameter groups, the factory's 1"},
    "in_backward": {"train": "post-accumulate-grad hooks.*check=False"},
}
"""What a refusal says, by kind and verb; the other cells are answered."""
OWN_ERROR: dict[str, dict[str, str]] = {
    "queues_that_batches_divide": dict.fromkeys(["fit", "train", "follow"], "divide the queue"),
    "exported": {
        "fit": r"size\(\)\[0\] == 6",
        "train": r"size\(\)\[0\] == 6",
        "follow": r"size\(\)\[0\] == 6",
    },
    "never_finite": {"train": "nan"},
}
"""The kinds' own errors at these sizes, which are right."""


def cells() -> list[Any]:
    """One verb of each kind, in turn; the verbs that a kind is refused in come first."""
    verbs = list(VERBS)
    chosen = [
        (kind, [*(REFUSED | OWN_ERROR).get(kind, {}), *verbs[place % len(verbs) :]][0])
        for place, kind in enumerate(KINDS)
    ]
    assert {verb for _, verb in chosen} == set(verbs)
    return [pytest.param(kind, verb, id=f"{kind}-{verb}") for kind, verb in chosen]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "verb"), cells())
def test_a_kind_is_trained_or_refused_by_name(kind: str, verb: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    error: type[Exception] = UsageError
    said = REFUSED.get(kind, {}).get(verb)
    if said is None and (said := OWN_ERROR.get(kind, {}).get(verb)):
        error = AssertionError
    with pytest.raises(error, match=re.compile(said, re.DOTALL)) if said else nullcontext():
        VERBS[verb](KINDS[kind])


def test_nothing_of_the_users_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in VERBS.values():
        verb(kinds_batches.named_tuples)
    assert list(tmp_path.iterdir()) == []
