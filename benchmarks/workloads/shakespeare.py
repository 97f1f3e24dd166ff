"""A character transformer on windows of tinyshakespeare, trained by Adam."""

import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

import rightbatch as rb

TEXT = Path(os.environ["RIGHTBATCH_DATA"]) / "tinyshakespeare.txt"
LENGTH, EVALUATED = 64, 100
LEARNING_RATE = 0.008  # for batch size 16 (benchmarks/results/tune.json)


class Windows(Dataset):
    """Windows of LENGTH characters and the ones that follow, from a part of the text."""

    def __init__(self, start, stop):
        text = TEXT.read_text()
        symbols = {c: i for i, c in enumerate(sorted(set(text)))}
        self.symbols = len(symbols)
        part = text[int(start * len(text)) : int(stop * len(text))]
        codes = torch.tensor([symbols[c] for c in part])
        self.windows = codes.unfold(0, LENGTH + 1, LENGTH).contiguous()

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        return self.windows[index]


class Characters(nn.Module):
    def __init__(self, symbols, width=64, layers=2, heads=4):
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))

    def forward(self, tokens):
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.head(self.layers(x, mask=mask, is_causal=True))


def loss(model, tokens):
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def workload():
    data, unseen = Windows(0, 0.9), Windows(0.9, 1)
    model = Characters(data.symbols)
    return rb.Workload(
        model,
        loss,
        torch.optim.Adam(model.parameters(), lr=LEARNING_RATE),
        data,
        evaluation_data=torch.utils.data.Subset(unseen, range(EVALUATED)),
        name="shakespeare",
    )
