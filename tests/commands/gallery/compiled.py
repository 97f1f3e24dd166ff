"""Train a compiled MLP that predicts the next sample of a signal."""

import argparse
import hashlib
import shutil
import time

import torch
import torch.nn as nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int, default=12)
parser.add_argument("--block_size", type=int, default=512, help="samples per example")
parser.add_argument("--context", type=int, default=32, help="samples to predict from")
parser.add_argument("--max_iters", type=int, default=30)
parser.add_argument("--learning_rate", type=float, default=1e-2)
parser.add_argument("--backend", default="inductor" if shutil.which("gcc") else "aot_eager")
parser.add_argument("--no-compile", dest="compile", action="store_false")
args = parser.parse_args()

torch.manual_seed(1337)
device = "cuda" if torch.cuda.is_available() else "cpu"

# A signal of three sine waves and noise
time_axis = torch.arange(50_000) / 50
data = sum(torch.sin(time_axis * w) for w in (1.0, 2.3, 7.1)) + 0.1 * torch.randn(50_000)


def get_batch():
    ix = torch.randint(len(data) - args.block_size - args.context, (args.batch_size,))
    x = torch.stack([data[i : i + args.block_size + args.context - 1] for i in ix])
    y = torch.stack([data[i + args.context : i + args.context + args.block_size] for i in ix])
    if device == "cuda":
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device)
    return x, y


class MLP(nn.Module):
    """Predict a sample from those before it."""

    def __init__(self, context, n_hidden=256):
        super().__init__()
        self.context = context
        self.c_fc = nn.Linear(context, n_hidden)
        self.c_proj = nn.Linear(n_hidden, 1)

    def forward(self, x, targets=None):
        windows = x.unfold(1, self.context, 1)
        predictions = self.c_proj(F.gelu(self.c_fc(windows))).squeeze(-1)
        loss = None
        if targets is not None:
            loss = F.mse_loss(predictions, targets)
        return predictions, loss


model = MLP(args.context).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95))
if args.compile:
    print("compiling the model... (takes a few seconds)")
    unoptimized_model = model
    model = torch.compile(model, backend=args.backend)

X, Y = get_batch()
t0 = time.time()
for iter_num in range(args.max_iters):
    predictions, loss = model(X, Y)
    X, Y = get_batch()  # prefetch the next batch while the GPU computes
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    t1 = time.time()
    if iter_num % 10 == 0:
        print(f"iter {iter_num}: loss {loss.item():.4f}, time {(t1 - t0) * 1000:.2f}ms")
    t0 = t1

digest = hashlib.sha256()
for p in model.parameters():
    digest.update(p.detach().cpu().numpy().tobytes())
print("loss", repr(loss.item()))
print("weights", digest.hexdigest())
