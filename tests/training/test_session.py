"""Sessions against the loop that a training script has, bit for bit."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import Dataset, TensorDataset, default_collate

from rightbatch import UsageError, Workload
from rightbatch._training.session import InferenceSession, WorkloadSession
from rightbatch._training.step import move_state
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch.testing import TrainingContract

FEATURES = 6


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Rows with a number that is learnt from them; no two alike."""

    def __init__(self, count: int = 12) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(count, FEATURES, generator=generator)
        self.y = torch.randn(count, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x).squeeze(1) - y).square().mean()


def build(
    optimizer: Callable[[Any], Optimizer] = lambda parameters: AdamW(parameters, lr=0.05),
    **fields: Any,
) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1))
    known = {
        "loss": squares,
        "data": Examples(),
        "size": lambda index: 100 - index,  # so that batches differ from step to step
    }
    return Workload(model=model, optimizer=optimizer(model.parameters()), **(known | fields))


class Recorder:
    """Collates, and remembers every batch."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def __call__(self, items: list[Any]) -> Any:
        self.batches.append(default_collate(items))
        return self.batches[-1]


def by_hand(
    model: nn.Module,
    optimizer: Optimizer,
    batches: list[Any],
    *,
    clip_norm: float | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """The loop that every tutorial has."""
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = squares(model, batch)
        scaler.scale(loss).backward()
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        scaler.step(optimizer)
        scaler.update()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


class TestWorkloadTraining(TrainingContract):
    batch_size: ClassVar[int] = 4

    @pytest.fixture
    def training(self) -> WorkloadTraining:
        return WorkloadTraining(lambda: build(evaluation_data=Examples()))


class TestWorkloadTrainingWithBatchNorm(TrainingContract):
    sizes: ClassVar[tuple[int, ...]] = (2, 3, 20)  # 20: more than there are examples
    batch_size: ClassVar[int] = 4

    @pytest.fixture
    def training(self) -> WorkloadTraining:
        def factory() -> Workload:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
            optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
            return Workload(model, squares, optimizer, Examples(), evaluation_data=Examples())

        return WorkloadTraining(factory)


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: AdamW(p, lr=0.05), lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True)],
    ids=["adamw", "sgd"],
)
@pytest.mark.parametrize("clip_norm", [None, 0.01])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_leave_the_parameters_that_a_loop_by_hand_leaves(
    optimizer: Callable[[Any], Optimizer], clip_norm: float | None, precision: Any
) -> None:
    recorder = Recorder()
    reference = build(optimizer)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    mine = build(optimizer, collate=recorder, clip_norm=clip_norm, precision=precision)
    session = WorkloadSession(mine, "cpu")
    recorder.batches.clear()  # those of the check that items are examples

    for batch_size in (4, 4, 4, 3, 5):
        session.step(batch_size)

    assert [len(x) for x, _ in recorder.batches] == [4, 4, 4, 3, 5]
    assert not torch.equal(recorder.batches[0][0], recorder.batches[1][0])
    by_hand(
        reference.model, reference.optimizer, recorder.batches, clip_norm=clip_norm, dtype=dtype
    )
    assert_same(mine.model, reference.model)


def test_clipping_and_precision_change_what_is_learnt() -> None:
    """Or the test above would compare what nobody asked for."""
    learnt = []
    for fields in ({}, {"clip_norm": 0.01}, {"precision": "bf16"}):
        workload = build(lambda p: SGD(p, lr=0.1), **fields)
        WorkloadSession(workload, "cpu").step(4)
        learnt.append(torch.cat([p.flatten() for p in parameters_of(workload.model)]))
    assert not torch.equal(learnt[0], learnt[1])
    assert not torch.equal(learnt[0], learnt[2])


def test_a_loaders_worker_loads_the_same_batches_and_ends_with_the_session() -> None:
    here, there = build(), build(workers=1)
    one, other = WorkloadSession(here, "cpu"), WorkloadSession(there, "cpu")
    before = {child.pid for child in psutil.Process().children()}
    for batch_size in (3, 3, 3):
        one.step(batch_size)
        other.step(batch_size)
    working = {child.pid for child in psutil.Process().children()} - before
    assert len(working) == 1
    assert_same(here.model, there.model)
    other.close()
    until = time.monotonic() + 60
    while working & {child.pid for child in psutil.Process().children()}:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_optimizer_goes_on_from_the_state_it_has() -> None:
    recorder = Recorder()
    reference, mine = build(), build(collate=recorder)
    earlier = [default_collate([mine.data[i] for i in range(4)])] * 3
    by_hand(mine.model, mine.optimizer, earlier)
    by_hand(reference.model, reference.optimizer, earlier)
    assert mine.optimizer.state

    session = WorkloadSession(mine, "cpu")
    recorder.batches.clear()  # those of the check that items are examples
    session.step(4)
    session.step(4)

    by_hand(reference.model, reference.optimizer, recorder.batches)
    assert_same(mine.model, reference.model)


def test_state_that_exists_moves_with_the_model_and_the_step_count_stays() -> None:
    workload = build()
    by_hand(workload.model, workload.optimizer, [workload.data[:2]])
    move_state(workload.optimizer, "meta")
    states = list(workload.optimizer.state.values())
    assert states
    for state in states:
        devices = {key: value.device.type for key, value in state.items()}
        assert devices == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_examples_are_those_of_one_epoch() -> None:
    assert WorkloadSession(build(), "cpu").examples == 12
    assert InferenceSession(build(), "cpu").examples == 12


# Evaluation


class Watched(nn.Module):
    """A model that remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 1)
        self.calls: list[dict[str, Any]] = []

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        self.calls.append(
            {
                "gradients": torch.is_grad_enabled(),
                "training": self.training,
                "inputs": inputs,
                "named": named,
                "dtype": torch.get_autocast_dtype("cpu")
                if torch.is_autocast_enabled("cpu")
                else None,
            }
        )
        return self.inner(next(iter((*inputs, *named.values()))))


def watched(**fields: Any) -> tuple[Workload, Watched]:
    model = Watched()
    known = {"loss": squares, "data": Examples()}
    optimizer = SGD(model.parameters(), lr=0.1)
    return Workload(model=model, optimizer=optimizer, **(known | fields)), model


@pytest.mark.parametrize("kind", [WorkloadSession, InferenceSession])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_evaluation_runs_without_gradients_in_evaluation_mode_and_in_the_precision(
    kind: type[WorkloadSession], precision: str, dtype: torch.dtype | None
) -> None:
    workload, model = watched(precision=precision)
    assert kind(workload, "cpu").evaluate(3) == 3
    (call,) = model.calls
    assert (call["gradients"], call["training"], call["dtype"]) == (False, False, dtype)
    assert call["inputs"][0].shape == (3, FEATURES)


def test_training_goes_on_in_training_mode_after_an_evaluation() -> None:
    workload, model = watched()
    session = WorkloadSession(workload, "cpu")
    session.step(2)
    session.evaluate(2)
    session.step(2)
    assert [call["training"] for call in model.calls] == [True, False, True]
    assert [call["gradients"] for call in model.calls] == [True, False, True]


def test_what_is_trained_is_evaluated_by_its_loss_and_by_predict_where_that_is_given() -> None:
    done: list[str] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        done.append("loss")
        return squares(model, batch)

    def predict(model: nn.Module, batch: Any) -> Tensor:
        done.append("predict")
        assert not torch.is_grad_enabled()
        return model(batch[0])

    WorkloadSession(build(loss=loss), "cpu").evaluate(2)
    WorkloadSession(build(loss=loss, predict=predict), "cpu").evaluate(2)
    InferenceSession(build(loss=loss, predict=predict), "cpu").evaluate(2)
    InferenceSession(build(loss=loss), "cpu").evaluate(2)
    assert done == ["loss", "predict", "predict"], "inference never needs a loss"


def test_evaluation_takes_the_worst_of_its_own_data() -> None:
    rows = [(torch.zeros(FEATURES), torch.zeros(n)) for n in (1, 5, 3, 9)]
    seen: list[list[int]] = []

    def collate(items: list[tuple[Tensor, Tensor]]) -> Any:
        seen.append([len(y) for _, y in items])
        return torch.stack([x for x, _ in items]), torch.zeros(len(items))

    def sized(items: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = collate(items)
        return (x, y) if len(items) > 1 else (x, items[0][1])

    WorkloadSession(build(evaluation_data=rows, collate=sized), "cpu").evaluate(2)
    assert sorted(seen[-1]) == [5, 9]


def test_evaluation_does_not_change_what_is_learnt() -> None:
    with_evaluation, without = build(), build()
    one, other = WorkloadSession(with_evaluation, "cpu"), WorkloadSession(without, "cpu")
    for _ in range(3):
        one.step(4)
        one.evaluate(7)
        other.step(4)
    assert_same(with_evaluation.model, without.model)


# Inference

TUPLES = Examples()
NAMED = [{"x": x, "labels": y} for x, y in TUPLES]
BARE = TensorDataset(TUPLES.x)


def first(items: list[tuple[Tensor, ...]]) -> Tensor:
    return torch.stack([item[0] for item in items])


@pytest.mark.parametrize(
    ("data", "collate", "named"),
    [
        (TUPLES, default_collate, ()),
        (BARE, default_collate, ()),
        (BARE, first, ()),
        (NAMED, default_collate, ("x",)),
    ],
    ids=["tuple", "one field", "tensor", "mapping"],
)
def test_inference_calls_the_model_on_inputs_without_labels(
    data: Any, collate: Callable[[list[Any]], Any], named: tuple[str, ...]
) -> None:
    workload, model = watched(data=data, collate=collate)
    assert InferenceSession(workload, "cpu").evaluate(4) == 4
    call = model.calls[-1]
    assert tuple(call["named"]) == named
    assert len(call["inputs"]) == (0 if named else 1)
    given = call["named"]["x"] if named else call["inputs"][0]
    assert torch.equal(given, TUPLES.x[:4])


@pytest.mark.parametrize(
    "label", ["label", "labels", "label_ids", "target", "targets", "y"], ids=str
)
def test_no_usual_name_of_a_label_reaches_the_model(label: str) -> None:
    workload, model = watched(data=[{"x": torch.zeros(FEATURES), label: torch.zeros(1)}] * 3)
    InferenceSession(workload, "cpu").evaluate(2)
    assert list(model.calls[0]["named"]) == ["x"]


def test_an_inference_session_does_not_train() -> None:
    with pytest.raises(UsageError, match="does not train"):
        InferenceSession(build(), "cpu").step(2)


# What cannot be meant


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda loss: loss.expand(3), r"Tensor of shape \(3,\)"),
        (lambda loss: loss.item(), "float"),
        (lambda loss: None, "NoneType"),
        (lambda loss: {"loss": loss}, "dict"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused_with_what_it_is(
    returned: Callable[[Tensor], Any], said: str
) -> None:
    workload = build(loss=lambda model, batch: returned(squares(model, batch)))
    with pytest.raises(UsageError, match=f"returns a scalar tensor, not {said}"):
        WorkloadSession(workload, "cpu").step(2)


def test_a_loss_of_one_element_is_a_scalar_whatever_its_shape() -> None:
    workload = build(loss=lambda model, batch: squares(model, batch).reshape(1))
    before = copy.deepcopy(workload.model)
    WorkloadSession(workload, "cpu").step(2)
    with pytest.raises(AssertionError):
        assert_same(workload.model, before)


def test_a_session_is_opened_for_what_the_factory_makes() -> None:
    training = WorkloadTraining(build)
    assert type(training.session("cpu", seed=0, inference=False)) is WorkloadSession
    assert type(training.session("cpu", seed=0, inference=True)) is InferenceSession


@pytest.mark.parametrize("made", [None, nn.Linear(1, 1), {}])
def test_a_factory_of_something_else_is_refused_by_the_type_it_returned(made: Any) -> None:
    with pytest.raises(UsageError, match=f"returned {type(made).__name__}, expected a rightbatch"):
        WorkloadTraining(lambda: made).session("cpu", seed=0, inference=False)


def test_a_mapping_that_is_no_dict_is_taken_by_its_names() -> None:
    class Encoding(Mapping[str, Any]):
        def __init__(self, fields: dict[str, Any]) -> None:
            self.fields = fields

        def __getitem__(self, key: str) -> Any:
            return self.fields[key]

        def __iter__(self) -> Iterator[str]:
            return iter(self.fields)

        def __len__(self) -> int:
            return len(self.fields)

    workload, model = watched(data=NAMED, collate=lambda items: Encoding(default_collate(items)))
    InferenceSession(workload, "cpu").evaluate(2)
    assert list(model.calls[0]["named"]) == ["x"]
