"""Train a GPT-2 from scratch with the Transformers Trainer."""

import hashlib
import logging
import sys
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Arguments of the model that is trained from scratch."""

    n_layer: int = field(default=2, metadata={"help": "Number of blocks."})
    n_embd: int = field(default=64, metadata={"help": "Width of the embeddings."})
    n_head: int = field(default=2, metadata={"help": "Attention heads per block."})


@dataclass
class DataTrainingArguments:
    """Arguments of the synthetic data."""

    block_size: int = field(default=128, metadata={"help": "Tokens per example."})
    max_train_samples: int = field(default=256, metadata={"help": "Number of examples."})
    vocab_size: int = field(default=128, metadata={"help": "Number of different tokens."})


class CountingDataset(Dataset):
    """Arithmetic sequences modulo the vocabulary."""

    def __init__(self, args: DataTrainingArguments, seed: int):
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(args.vocab_size, (args.max_train_samples, 1), generator=generator)
        stride = torch.randint(1, 5, (args.max_train_samples, 1), generator=generator)
        self.tokens = (first + stride * torch.arange(args.block_size)) % args.vocab_size

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "labels": self.tokens[i]}


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()

    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        handlers=[logging.StreamHandler(sys.stdout)],
        level=logging.INFO,
    )
    logger.info("Process rank: %s, device: %s", training_args.local_rank, training_args.device)
    set_seed(training_args.seed)

    config = GPT2Config(
        vocab_size=data_args.vocab_size,
        n_positions=data_args.block_size,
        n_embd=model_args.n_embd,
        n_layer=model_args.n_layer,
        n_head=model_args.n_head,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    logger.info("Model has %d parameters", model.num_parameters())

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=CountingDataset(data_args, seed=0),
        eval_dataset=CountingDataset(data_args, seed=1) if training_args.do_eval else None,
        data_collator=default_data_collator,
    )
    result = trainer.train()
    trainer.log_metrics("train", result.metrics)
    if training_args.do_eval:
        trainer.log_metrics("eval", trainer.evaluate())

    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        print("loss", repr(losses[-1] if losses else result.training_loss))
        print("weights", digest.hexdigest())


if __name__ == "__main__":
    main()
