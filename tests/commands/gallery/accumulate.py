"""Train a character model on texts of different lengths, with gradient accumulation."""

import argparse
import hashlib
import math
import random

import torch
import torch.nn as nn
import torch.nn.functional as F

PAD = 0
VOCABULARY = 64
LONGEST = 96


def make_texts(count, seed):
    """Texts built from a small set of random words."""
    rng = random.Random(seed)
    words = [[rng.randrange(2, VOCABULARY) for _ in range(rng.randint(2, 7))] for _ in range(40)]
    texts = []
    for _ in range(count):
        length = rng.randint(16, LONGEST)
        text = []
        while len(text) < length:
            text += [*rng.choice(words), 1]
        texts.append(text[:length])
    return texts


def batches(texts, size, seed):
    """Yield lists of texts, forever, in a new order each time around."""
    rng = random.Random(seed)
    while True:
        order = list(range(len(texts)))
        rng.shuffle(order)
        for start in range(0, len(order), size):
            yield [texts[i] for i in order[start : start + size]]


def pad(texts):
    longest = max(len(text) for text in texts)
    tokens = torch.full((len(texts), longest), PAD)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    return tokens


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x, mask):
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(w // self.heads)
        weights = scores.masked_fill(mask, float("-inf")).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    def __init__(self, width=64, heads=2, depth=1):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width, padding_idx=PAD)
        self.positions = nn.Embedding(LONGEST, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens):
        t = tokens.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.tokens(tokens) + self.positions(torch.arange(t, device=tokens.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--micro-batch", type=int, default=8, help="texts in a forward pass")
    parser.add_argument("--accumulation", type=int, default=4, help="forward passes in a step")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model = LanguageModel().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    data = batches(make_texts(2000, args.seed), args.micro_batch, args.seed)

    for step in range(args.steps):
        step_loss = 0.0
        for _ in range(args.accumulation):
            tokens = pad(next(data)).to(device)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(
                logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1), ignore_index=PAD
            )
            loss = loss / args.accumulation
            loss.backward()
            step_loss += loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 5 == 0:
            print(f"step {step}: loss {step_loss:.4f}, perplexity {math.exp(step_loss):.1f}")

    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    print("loss", repr(step_loss))
    print("weights", digest.hexdigest())


if __name__ == "__main__":
    main()
