"""Train with mixed precision, gradient scaling, gradient clipping and a learning rate schedule."""

import argparse
import hashlib

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", default=32, type=int)
parser.add_argument("--epochs", default=2, type=int)
parser.add_argument("--lr", default=2e-3, type=float)
parser.add_argument("--clip", default=1.0, type=float, help="maximal norm of the gradients")
parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.act(self.norm(x)))


class PatchNet(nn.Module):
    """Embed patches of 4x4 pixels, and average over them."""

    def __init__(self, dim=128, classes=8):
        super().__init__()
        self.patches = nn.PixelUnshuffle(4)
        self.embed = nn.Linear(48, dim)
        self.blocks = nn.Sequential(Block(dim), Block(dim), Block(dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(self.embed(x))
        return self.head(x.mean(dim=1))


def main():
    args = parser.parse_args()
    torch.manual_seed(2024)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    labels = torch.randint(8, (384,))
    images = torch.randn(384, 3, 64, 64) + labels.view(-1, 1, 1, 1) * 0.1
    loader = DataLoader(TensorDataset(images, labels), batch_size=args.batch_size, shuffle=True)

    model = PatchNet().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    total_steps = args.epochs * len(loader)
    warmup = max(1, total_steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, max(0.0, (total_steps - step) / total_steps)),
    )
    scaler = torch.amp.GradScaler(device)
    amp_dtype = getattr(torch, args.dtype)

    for epoch in range(args.epochs):
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            with torch.autocast(device_type=device, dtype=amp_dtype):
                loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= scale:  # otherwise the step was skipped
                scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}, scale {scaler.get_scale()}")

    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
