"""A Llama of 7 billion parameters in bf16, AdamW, 2,048 tokens."""

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

import rightbatch as rb

LENGTH = 2048


class Tokens(Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        tokens = torch.arange(LENGTH) % 32_000
        return {"input_ids": tokens, "labels": tokens}


def loss(model, batch):
    return model(**batch).loss


def workload():
    model = LlamaForCausalLM(LlamaConfig())  # its defaults are those of the 7B
    optimizer = torch.optim.AdamW(model.parameters())
    return rb.Workload(model, loss, optimizer, Tokens(), precision="bf16")
