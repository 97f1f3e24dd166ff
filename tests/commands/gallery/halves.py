"""Train a classifier; halve the batch size when memory runs out."""

import argparse
import gc
import hashlib

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset


class RandomImages(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, idx):
        g = torch.Generator().manual_seed(idx)
        label = idx % 3
        image = torch.randn(3, 64, 64, generator=g)
        image[label] += 0.5
        return image, label


def is_out_of_memory(error):
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def train_epoch(model, optimizer, criterion, device, batch_size):
    loader = DataLoader(RandomImages(512), batch_size=batch_size, shuffle=True)
    model.train()
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--batch_size", type=int, default=64)
    ap.add_argument("--min_batch_size", type=int, default=1)
    ap.add_argument("--epochs", type=int, default=2)
    ap.add_argument("--lr", type=float, default=1e-3)
    args = ap.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 16, 1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(8),
        nn.Flatten(),
        nn.Linear(16 * 64, 3),
    ).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    batch_size = args.batch_size
    epoch = 0
    while epoch < args.epochs:
        failed = False
        try:
            loss = train_epoch(model, optimizer, criterion, device, batch_size)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e) or batch_size <= args.min_batch_size:
                raise
            failed = True
        if failed:
            # Outside of `except`, whose traceback holds the tensors
            optimizer.zero_grad(set_to_none=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            batch_size = max(args.min_batch_size, batch_size // 2)
            print(f"WARNING: out of memory, retrying epoch {epoch} with batch size {batch_size}")
            continue
        print(f"epoch {epoch}: batch size {batch_size}, loss {loss:.4f}")
        epoch += 1

    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().cpu().numpy().tobytes())
    print("loss", repr(loss))
    print("weights", digest.hexdigest())


if __name__ == "__main__":
    main()
