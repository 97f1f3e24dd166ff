"""A character transformer on tinyshakespeare; every speech is an example, so lengths vary."""

import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

import rightbatch as rb

LONGEST, EXAMPLES = 256, 400
TEXT = Path(os.environ["RIGHTBATCH_DATA"]) / "tinyshakespeare.txt"


class Speeches(Dataset):
    def __init__(self):
        text = TEXT.read_text()
        symbols = {c: i + 1 for i, c in enumerate(sorted(set(text)))}
        self.symbols = len(symbols) + 1
        speeches = [s for s in text.split("\n\n") if len(s) > 8][:EXAMPLES]
        self.speeches = [torch.tensor([symbols[c] for c in s[:LONGEST]]) for s in speeches]

    def __len__(self):
        return len(self.speeches)

    def __getitem__(self, index):
        return self.speeches[index]


class Characters(nn.Module):
    def __init__(self, symbols, width=192, layers=4, heads=6):
        super().__init__()
        self.embed = nn.Embedding(symbols, width, padding_idx=0)
        self.place = nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, symbols)

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.embed(tokens) + self.place(torch.arange(length, device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        return self.head(self.layers(x, mask=mask, is_causal=True))


def loss(model, tokens):
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0
    )


def pad(items):
    return nn.utils.rnn.pad_sequence(items, batch_first=True)


def workload():
    data = Speeches()
    model = Characters(data.symbols)
    return rb.Workload(
        model,
        loss,
        torch.optim.AdamW(model.parameters()),
        data,
        collate=pad,
        count=lambda tokens: float((tokens[:, 1:] != 0).sum()),
        size=lambda index: len(data.speeches[index]),
    )
