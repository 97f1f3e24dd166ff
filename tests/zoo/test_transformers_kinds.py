"""Transformers trainings of every kind: trained as by its trainer, measured, or refused by name."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb

pytest.importorskip("transformers")
import kinds_transformers as kinds
from framework_checks import check_fit, check_followed, check_steps, check_training, weights
from transformers import Trainer

from rightbatch.integrations.transformers import ElasticMixin
from rightbatch.integrations.transformers._batch import TrainerBatches, copied

pytestmark = pytest.mark.filterwarnings("ignore")

ALL = sorted(kinds.KINDS.keys() - {"compiled"})  # compiles for every size


def train(factory: Callable[[], Any], folder: Path, **options: Any) -> rb.TrainResult:
    defaults = {"batch": 4, "micro_batch": 2, "epochs": 2, "device": "cpu", "progress": False}
    return rb.train(factory, out=folder / "run", **defaults | options)


@pytest.mark.parametrize("name", ALL)
def test_its_step_is_measured_at_any_size_or_refused(name: str) -> None:
    check_steps(kinds, name)


@pytest.mark.parametrize("name", ALL)
def test_it_trains_to_the_end_or_is_refused(name: str, tmp_path: Path) -> None:
    check_training(kinds, name, lambda factory: train(factory, tmp_path))


EQUAL = (
    "plain",
    "label_smoothing",
    "collator_returns_a_batch_encoding",
    "extra_string_columns",
    "own_loss",
    "own_loss_function",
    "own_optimizer",
    "warmup_and_cosine",
    "plateau",
    "classifier",
    "gradient_checkpointing",
)


def sequential(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Let every trainer keep the order of its data, and step by SGD.

    Adam would enlarge the rounding of gradients that are zero. One batch evaluates, since the
    trainer's loss is a mean over batches.
    """
    arguments = kinds.arguments
    fixed: dict[str, Any] = {
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "per_device_eval_batch_size": 8,
        **more,
    }

    def ordered(*given: Any, **options: Any) -> Any:
        return arguments(*given, **fixed | options)

    monkeypatch.setattr(kinds, "arguments", ordered)


@pytest.mark.parametrize("name", EQUAL)
def test_it_ends_at_the_weights_and_metrics_of_the_trainer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequential(monkeypatch)
    result = train(kinds.KINDS[name], tmp_path)
    monkeypatch.setattr(kinds, "workload", lambda trainer: trainer)
    torch.manual_seed(0)
    trainer: Any = kinds.KINDS[name]()
    trainer.train()
    expected = list(trainer.model.state_dict().values())
    for mine, theirs in zip(weights(tmp_path), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)
    if "evaluation_loss" in result.metrics:
        loss = trainer.evaluate()["eval_loss"]
        assert result.metrics["evaluation_loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("name", ["compute_metrics", "predict_with_generate"])
def test_its_metrics_are_those_of_the_trainer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(kinds.KINDS[name], tmp_path)
    monkeypatch.setattr(kinds, "workload", lambda trainer: trainer)
    trainer: Any = kinds.KINDS[name]()
    names = trainer.model.state_dict()
    trainer.model.load_state_dict(dict(zip(names, weights(tmp_path), strict=True)))
    expected = trainer.evaluate()
    own = set(result.metrics) - {"loss", "evaluation_loss"}
    assert own
    for metric in own:
        assert result.metrics[metric] == pytest.approx(expected[f"eval_{metric}"])


def test_every_evaluation_set_has_its_metrics(tmp_path: Path) -> None:
    result = train(kinds.several_evaluation_sets, tmp_path)
    assert {"eval_short_loss", "eval_long_loss"} <= set(result.metrics)


@pytest.mark.parametrize("name", ["plateau", "group_by_length", "own_sampler"])
def test_a_resumed_training_ends_at_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rightbatch.integrations.transformers._run import TrainerRun

    train(kinds.KINDS[name], tmp_path, checkpoint_seconds=0)
    undisturbed = weights(tmp_path)
    steps = 0

    def ending(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 8:  # in the second epoch
            raise RuntimeError("the power went")

    other = tmp_path / "other"
    other.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(TrainerRun, "on_step_end", ending)
        with pytest.raises(rb.WorkloadError, match="the power went"):
            train(kinds.KINDS[name], other, checkpoint_seconds=0)
    train(kinds.KINDS[name], other, checkpoint_seconds=0, resume=True)
    for mine, theirs in zip(weights(other), undisturbed, strict=True):
        assert torch.equal(mine, theirs)


def test_group_by_length_groups_lengths_and_a_sampler_keeps_to_its_examples() -> None:
    grouped = kinds.group_by_length()
    assert grouped.order is not None
    order = grouped.order(0, 1)
    lengths = [len(grouped.data[index]["input_ids"]) for index in order]
    assert sorted(order) == list(range(kinds.EXAMPLES)) != list(order)
    for start in range(0, kinds.EXAMPLES, 4):  # groups as large as the trainer's batch
        group = lengths[start : start + 4]
        assert group == sorted(group, reverse=True)
    drawn = kinds.own_sampler().order
    assert drawn is not None
    assert set(drawn(0, 0)) <= set(range(kinds.EXAMPLES // 2))


def test_activations_are_checkpointed_as_in_the_training() -> None:
    assert kinds.gradient_checkpointing().model.is_gradient_checkpointing
    assert not kinds.plain().model.is_gradient_checkpointing


def _batches() -> TrainerBatches:
    model = kinds.language_model()
    return TrainerBatches(Trainer(model=model, args=kinds.arguments()))


def test_lists_are_split_with_their_examples_and_shared_values_are_kept() -> None:
    batch = {
        "input_ids": torch.arange(6).reshape(3, 2),
        "name": ["a", "b", "c"],
        "images": [torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 4)],
        "bias": torch.zeros(1, 2),
        "return_loss": True,
    }
    first, second = _batches().split(batch, 2)
    assert first["name"] == ["a", "b"] and second["name"] == ["c"]
    assert [image.shape[1] for image in second["images"]] == [4]
    assert second["bias"].shape == (1, 2) and second["return_loss"] is True
    assert second["input_ids"].tolist() == [[4, 5]]


def test_a_tensor_whose_rows_are_not_the_examples_is_not_split_silently() -> None:
    batch = {"input_ids": torch.zeros(3, 2), "pixel_values": torch.zeros(7, 5)}
    with pytest.raises(rb.UsageError, match="'pixel_values' of shape"):
        _batches().split(batch, 2)


class Named(UserDict[str, Any]):
    """A batch whose class is not made from a mapping, with an attribute of its own."""

    def __init__(self, name: str, **items: Any) -> None:
        super().__init__(items)
        self.name = name


class Uncopied(dict[str, Any]):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ValueError("not to be copied")


def test_parts_are_batches_of_the_same_class_where_one_can_be_made() -> None:
    batches, rows = _batches(), torch.arange(6).reshape(3, 2)
    first, second = batches.split(Named("a", input_ids=rows), 2)
    assert type(first) is type(second) is Named and first.name == "a"
    assert [len(first["input_ids"]), len(second["input_ids"])] == [2, 1]
    batch = Uncopied(input_ids=rows, labels=rows)
    taken = copied(batch)
    del taken["labels"]
    assert type(taken) is Uncopied and "labels" in batch


def test_a_metric_that_is_a_time_is_kept_and_the_speed_is_not(tmp_path: Path) -> None:
    def metrics(result: Any) -> dict[str, float]:
        return {"time": 1.0, "mean_response_time": 2.0, "examples_per_second": 3.0}

    result = train(lambda: kinds.described(compute_metrics=metrics), tmp_path, epochs=1)
    assert result.metrics.keys() - {"loss", "evaluation_loss"} == metrics(None).keys()


def test_a_stream_evaluates_nothing() -> None:
    with pytest.raises(rb.UsageError, match="validation data is an IterableDataset"):
        kinds.described(eval_dataset=kinds.Stream())


def test_an_evaluation_leaves_out_the_batch_that_the_trainer_drops() -> None:
    given = {"dataloader_drop_last": True, "per_device_eval_batch_size": 4}
    w = kinds.described(args=given, eval_dataset=kinds.texts(6))
    assert w.evaluation_data is not None and len(w.evaluation_data) == 4


def test_a_batch_without_a_label_has_a_loss_of_zero() -> None:
    w = kinds.plain()
    batch = w.collate([w.data[0], w.data[1]])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert w.count(batch) == 0
    assert float(w.loss(w.model, batch)) == 0


def test_a_loss_that_takes_the_labels_out_leaves_the_batch_as_it_was() -> None:
    w = kinds.own_loss()
    batch = w.collate([w.data[0], w.data[1]])
    count = w.count(batch)
    w.loss(w.model, batch)
    assert "labels" in batch and w.count(batch) == count


@pytest.mark.parametrize("name", ["plain", "classifier"])
def test_its_step_can_be_followed_without_its_memory(name: str) -> None:
    check_followed(kinds, name)


@pytest.mark.slow
def test_fit_answers_by_the_name_of_a_function() -> None:
    check_fit(kinds, "group_by_length", 8)


@pytest.mark.parametrize("name", ["plain", "label_smoothing", "own_loss", "extra_string_columns"])
def test_an_elastic_trainer_trains_as_the_trainer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequential(monkeypatch, gradient_accumulation_steps=2)
    monkeypatch.setattr(kinds, "workload", lambda trainer: trainer)
    trainers: list[Any] = []
    for parts in (None, 3):
        torch.manual_seed(0)
        trainer: Any = kinds.KINDS[name]()
        if parts is not None:
            kind = type(trainer)
            made = type("Elastic", (ElasticMixin, kind), {})
            torch.manual_seed(0)
            monkeypatch.setattr(kinds, "Trainer", made)
            options = {
                "model": trainer.model,
                "args": trainer.args,
                "train_dataset": trainer.train_dataset,
                "eval_dataset": trainer.eval_dataset,
                "data_collator": trainer.data_collator,
            }
            trainer = made(micro_batch_size=parts, **options)
        trainer.train()
        trainers.append(trainer)
    plain, elastic = (list(trainer.model.state_dict().values()) for trainer in trainers)
    for one, other in zip(plain, elastic, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def pair(
    monkeypatch: pytest.MonkeyPatch,
    kind: Any = Trainer,
    model: Callable[[], Any] | None = kinds.language_model,
    args: Any = None,
    **options: Any,
) -> list[Any]:
    """A trainer and an elastic one, of equal models and the same data."""
    sequential(monkeypatch)
    made: list[Any] = []
    for parts in (None, 2):
        torch.manual_seed(0)
        own = {"model": model and model(), "train_dataset": kinds.texts()} | options
        chosen = kind if parts is None else type("Elastic", (ElasticMixin, kind), {})
        more = {} if parts is None else {"micro_batch_size": parts}
        made.append(chosen(args=kinds.arguments(**args or {}), **own, **more))
    return made


def assert_same_weights(trainers: list[Any]) -> None:
    plain, elastic = (list(trainer.model.state_dict().values()) for trainer in trainers)
    for one, other in zip(plain, elastic, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_an_elastic_trainer_trains_the_model_that_train_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An evaluation before `train` held the model that `model_init` then replaced.

    An evaluation before the training is what people do for a baseline (modelscope/ms-swift#4660).
    """

    def build() -> Any:
        torch.manual_seed(0)
        return kinds.language_model()

    trainers = pair(monkeypatch, model=None, model_init=build, eval_dataset=kinds.texts(6))
    before = {name: value.clone() for name, value in build().state_dict().items()}
    for trainer in trainers:
        trainer.evaluate()
        trainer.train()
    assert_same_weights(trainers)
    after = trainers[1].model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_an_elastic_trainer_takes_a_micro_batch_without_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A conversation that is cut before its answer has none.

    karpathy/nanochat#618, huggingface/trl#6668
    """
    texts = kinds.texts()
    for text in texts[4:8]:
        text["labels"] = torch.full((10,), -100)
    accumulated = {"gradient_accumulation_steps": 2}
    trainers = pair(monkeypatch, args=accumulated, train_dataset=texts)
    losses = [trainer.train().training_loss for trainer in trainers]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_weights(trainers)


class Tagger(nn.Module):
    """Takes any keyword, as most models of transformers do; its loss is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(kinds.VOCABULARY, 8)
        self.linear = nn.Linear(8, kinds.VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> dict[str, Tensor]:
        logits = self.linear(self.embedding(input_ids))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


class MeanOfEach(Trainer):
    """Says that its loss is a mean over a micro-batch, which the trainer then divides."""

    loss_is_scaled_for_ga = False


@pytest.mark.parametrize("kind", [Trainer, MeanOfEach])
def test_an_elastic_trainer_scales_a_mean_loss_as_the_trainer(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is not divided by the labels of an update; huggingface/transformers#37766.

    The trainer then adds the means, or divides them by their number if it is told so.
    """
    if kind is MeanOfEach and not hasattr(Trainer, "loss_is_scaled_for_ga"):
        pytest.skip("this version of transformers has no loss_is_scaled_for_ga")
    accumulated = {"gradient_accumulation_steps": 2}
    trainers = pair(monkeypatch, kind, Tagger, args=accumulated)
    losses = [trainer.train().training_loss for trainer in trainers]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_weights(trainers)
