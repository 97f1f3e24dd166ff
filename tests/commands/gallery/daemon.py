"""Train a classifier beside a background process that outlives the training."""

import argparse
import hashlib
import os
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def start_daemon(seconds):
    """Start a process that syncs the logs until some time after the training; return its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            return int(pipe.read())

    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(reader)
    os.write(writer, str(os.getpid()).encode())
    os.close(writer)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    time.sleep(seconds)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--daemon-seconds", type=float, default=600)
    args = parser.parse_args()
    print("daemon", start_daemon(args.daemon_seconds), flush=True)

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(384, 3, 64, 64)
    labels = (images[:, 0].mean(dim=(1, 2)) > 0).long()
    loader = DataLoader(TensorDataset(images, labels), args.batch_size, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(8),
        nn.Flatten(),
        nn.Linear(32 * 64, 2),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(args.epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
