"""Transformers trainings of the kinds that people report about, each a small factory.

`rightbatch fit tests/zoo/kinds_transformers.py:label_smoothing` runs one of them. `KINDS` has them
by name; `REFUSED` maps the name of a kind that cannot be described to the words of its refusal.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset, WeightedRandomSampler
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from rightbatch import Workload
from rightbatch.integrations.transformers import workload

logging.getLogger("transformers").setLevel(logging.ERROR)

EXAMPLES = 24
VOCABULARY = 30


def texts(examples: int = EXAMPLES, *, varying: bool = False) -> list[dict[str, Any]]:
    """Texts of 10 tokens, or of 4 to 10, of which some labels are ignored."""
    generator = torch.Generator().manual_seed(1)
    found: list[dict[str, Any]] = []
    for index in range(examples):
        length = 4 + index % 7 if varying else 10
        tokens = torch.randint(1, VOCABULARY, (length,), generator=generator)
        labels = tokens.clone()
        labels[int(torch.randint(2, length, (), generator=generator)) :] = -100
        found.append({"input_ids": tokens, "labels": labels})
    return found


def language_model(**options: Any) -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )
    return GPT2LMHeadModel(config)


def arguments(kind: Any = TrainingArguments, **options: Any) -> Any:
    """Arguments of a trainer on the CPU that reports to nobody."""
    return kind(
        output_dir=tempfile.gettempdir() + "/rightbatch-zoo",
        **{
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "save_strategy": "no",
        }
        | options,
    )


def described(**options: Any) -> Workload:
    """The workload of a trainer; `args` are options of its arguments, `kind` its class."""
    kind = options.pop("kind", Trainer)
    made = {"model": language_model(), "train_dataset": texts(), "eval_dataset": texts(6)}
    args = arguments(**options.pop("args", {}))
    return workload(kind(args=args, **made | options))


def plain() -> Workload:
    return described()


def label_smoothing() -> Workload:
    return described(args={"label_smoothing_factor": 0.1})


def padded(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A collator of one's own: pads to the longest text of the batch."""
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([item["input_ids"] for item in items], batch_first=True),
        "attention_mask": pad([torch.ones_like(item["input_ids"]) for item in items], True),
        "labels": pad([item["labels"] for item in items], True, -100.0),
    }


def group_by_length() -> Workload:
    return described(
        train_dataset=texts(varying=True),
        eval_dataset=texts(6, varying=True),
        data_collator=padded,
        args={"train_sampling_strategy": "group_by_length"},
    )


def collator_returns_a_batch_encoding() -> Workload:
    return described(
        train_dataset=texts(varying=True),
        eval_dataset=texts(6, varying=True),
        data_collator=lambda items: BatchEncoding(padded(items)),
    )


class WithStrings(Trainer):
    """Its collator keeps a column of strings, which `compute_loss` takes out again."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **keywords: Any
    ) -> Any:
        names = inputs.pop("name")
        assert len(names) == len(inputs["input_ids"])
        return super().compute_loss(model, inputs, return_outputs, **keywords)


def extra_string_columns() -> Workload:
    named = [text | {"name": f"text {index}"} for index, text in enumerate(texts())]

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return padded(items) | {"name": [item["name"] for item in items]}

    return described(
        kind=WithStrings,
        train_dataset=named,
        eval_dataset=None,
        data_collator=collate,
        args={"remove_unused_columns": False},
    )


def unused_columns_removed() -> Workload:
    named = [text | {"name": f"text {index}", "id": index} for index, text in enumerate(texts())]
    return described(train_dataset=named)


def counts_input_tokens() -> Workload:
    return described(args={"include_num_input_tokens_seen": "all"})


def gradient_checkpointing() -> Workload:
    return described(
        args={
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    )


def noisy_embeddings() -> Workload:
    return described(args={"neftune_noise_alpha": 5.0})


def _accuracy(result: Any) -> dict[str, float]:
    right = (result.predictions.argmax(-1) == result.label_ids)[result.label_ids != -100]
    return {"accuracy": float(right.mean()), "rows": float(len(result.predictions))}


def compute_metrics() -> Workload:
    return described(compute_metrics=_accuracy, args={"eval_accumulation_steps": 1})


def several_evaluation_sets() -> Workload:
    return described(eval_dataset={"short": texts(3), "long": texts(9)})


class PerToken(Trainer):
    """A loss of one's own, which takes the labels out of its inputs."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
        count = num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum()
        return (loss / count, outputs) if return_outputs else loss / count


def own_loss() -> Workload:
    return described(kind=PerToken)


def own_loss_function() -> Workload:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs["logits"][:, :-1].flatten(0, 1)
        total = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch

    return described(compute_loss_func=loss)


class OwnOptimizer(Trainer):
    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        return self.optimizer


def own_optimizer() -> Workload:
    return described(kind=OwnOptimizer)


def warmup_and_cosine() -> Workload:
    return described(args={"lr_scheduler_type": "cosine", "warmup_steps": 0.1})


def plateau() -> Workload:
    return described(args={"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"})


def adafactor() -> Workload:
    return described(args={"optim": "adafactor"})


def bfloat16() -> Workload:
    return described(args={"bf16": True})


class Weighted(Trainer):
    """Draws the first half of the data only."""

    def _get_train_sampler(self, *_: Any) -> Any:
        half = EXAMPLES // 2
        return WeightedRandomSampler([1.0] * half + [0.0] * half, EXAMPLES)


def own_sampler() -> Workload:
    return described(kind=Weighted)


def classifier() -> Workload:
    """Labels per example, and a tokenizer's columns."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    data = [
        {"input_ids": text["input_ids"], "label": int(text["input_ids"].sum()) % 2}
        for text in texts()
    ]
    model = BertForSequenceClassification(config)
    return described(model=model, train_dataset=data, eval_dataset=data[:6])


def _translations() -> list[dict[str, Any]]:
    return [{"input_ids": text["input_ids"], "labels": text["input_ids"][:5]} for text in texts()]


def predict_with_generate() -> Workload:
    """A model that writes a text for its metrics."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return workload(
        Seq2SeqTrainer(
            model=T5ForConditionalGeneration(config),
            args=arguments(
                Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=6
            ),
            train_dataset=_translations(),
            eval_dataset=_translations()[:5],
            compute_metrics=lambda result: {"length": float(result.predictions.shape[1])},
        )
    )


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(texts())


def stream() -> Workload:
    return described(train_dataset=Stream(), args={"max_steps": 10})


def one_example() -> Workload:
    return described(train_dataset=texts(1))


def smaller_than_the_batch() -> Workload:
    return described(train_dataset=texts(3), args={"per_device_train_batch_size": 64})


def early_stopping() -> Workload:
    return described(
        callbacks=[EarlyStoppingCallback(1)],
        args={
            "load_best_model_at_end": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "metric_for_best_model": "loss",
        },
    )


class Adversarial(Trainer):
    def training_step(self, *arguments: Any, **keywords: Any) -> Any:
        return super().training_step(*arguments, **keywords)


def own_training_step() -> Workload:
    return described(kind=Adversarial)


def compiled() -> Workload:
    return described(args={"torch_compile": True, "torch_compile_backend": "eager"})


_ALL: tuple[Callable[[], Workload], ...] = (
    plain,
    label_smoothing,
    group_by_length,
    collator_returns_a_batch_encoding,
    extra_string_columns,
    unused_columns_removed,
    counts_input_tokens,
    gradient_checkpointing,
    noisy_embeddings,
    compute_metrics,
    several_evaluation_sets,
    own_loss,
    own_loss_function,
    own_optimizer,
    warmup_and_cosine,
    plateau,
    adafactor,
    bfloat16,
    own_sampler,
    classifier,
    predict_with_generate,
    stream,
    one_example,
    smaller_than_the_batch,
    early_stopping,
    own_training_step,
    compiled,
)
KINDS: dict[str, Callable[[], Workload]] = {factory.__name__: factory for factory in _ALL}

REFUSED = {"own_training_step": "training_step"}
"""Kinds that no verb takes."""

TRAIN_REFUSED = {
    "stream": "map-style",
    "early_stopping": "EarlyStoppingCallback, load_best_model_at_end",
}
"""Kinds that `fit` and `predict` take, and `train` does not."""
