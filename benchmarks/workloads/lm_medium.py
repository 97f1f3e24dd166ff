"""A decoder like the one recorded in `cuda-traces/lm_medium_fp32_ctx256_training`, from scratch.

24 layers, width 1024, 16 heads, feed-forward 4096 with three matrices, vocabulary 10,000, rotary
positions, RMSNorm, attention and loss in plain tensor operations, and so is AdamW.
"""

import math

import torch
from torch import nn
from torch.utils.data import Dataset

import rightbatch as rb

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, CONTEXT = 24, 1024, 16, 4096, 10_000, 256


class Tokens(Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, VOCABULARY, (CONTEXT + 1,), generator=generator)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return x * scale * self.weight


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, HEADS, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        at = torch.arange(length, device=x.device)
        mixed = attend(q, k, v, at.view(-1, 1) >= at.view(1, -1))
        return self.output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


def attend(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    return softmax(scores) @ v


def softmax(x):
    shifted = x - torch.max(x, dim=-1, keepdim=True)[0]
    powers = shifted.exp()
    return powers / powers.sum(-1, keepdim=True)


def silu(x):
    return x * torch.sigmoid(x)


def rotate(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = Norm(), Norm()
        self.attention = Attention()
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.before(x), cos, sin)
        y = self.after(x)
        return x + self.down(silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(CONTEXT), 10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        length = tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return self.head(self.norm(x))


class PlainAdamW(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-4, "betas": (0.9, 0.95), "decay": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                t = state.get("t", 1)
                m = state.get("m", torch.zeros_like(p))
                v = state.get("v", torch.zeros_like(p))
                p -= group["lr"] * group["decay"] * p
                m = first * m + (1 - first) * p.grad
                v = second * v + (1 - second) * p.grad**2
                rate = group["lr"] * math.sqrt(1 - second**t) / (1 - first**t)
                p -= rate * m / (v.sqrt() + 1e-8)
                state.update(t=t + 1, m=m, v=v)


def loss(model, tokens):
    logits = model(tokens[:, :-1])
    targets = tokens[:, 1:]
    shifted = logits - logits.max(-1, keepdim=True).values
    chosen = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (shifted.exp().sum(-1).log() - chosen).mean()


def workload():
    model = Decoder()
    return rb.Workload(model, loss, PlainAdamW(model.parameters()), Tokens())
