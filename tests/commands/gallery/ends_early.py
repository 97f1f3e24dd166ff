"""Train a classifier whose labels do not match its number of classes."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load_data(classes):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 3, 64, 64, generator=generator)
    labels = torch.randint(12, (256,), generator=generator)
    if labels.max() >= classes:
        raise ValueError(f"labels go up to {labels.max()}, but the model has {classes} classes")
    return TensorDataset(images, labels)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, args.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(load_data(args.classes), batch_size=args.batch_size, shuffle=True)
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
    print("loss", repr(loss.item()))


if __name__ == "__main__":
    main()
