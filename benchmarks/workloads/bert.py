"""A small BERT from a Transformers configuration, masked language modelling, 128 tokens."""

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM

import rightbatch as rb

EXAMPLES, LENGTH, VOCABULARY = 320, 128, 2000


class Tokens(Dataset):
    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(5, VOCABULARY, (LENGTH,), generator=generator)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def loss(model, batch):
    return model(**batch).loss


def workload():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    model = BertForMaskedLM(config)
    return rb.Workload(model, loss, torch.optim.AdamW(model.parameters()), Tokens())
