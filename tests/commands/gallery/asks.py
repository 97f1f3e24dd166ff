"""Train a classifier after a question on the terminal."""

import argparse
import hashlib
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--name", default="baseline", help="name of the experiment")
    args = parser.parse_args()

    answer = input(f"Experiment {args.name!r} exists. Train it again? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        sys.exit("Nothing was trained.")

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(512, 3, 64, 64)
    labels = (images[:, 0].mean(dim=(1, 2)) > 0).long()
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(8),
        nn.Flatten(),
        nn.Linear(32 * 64, 2),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    for x, y in DataLoader(TensorDataset(images, labels), args.batch_size, shuffle=True):
        loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
