"""Train a classifier with a learning rate schedule that is too short."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SCHEDULE = [1e-4, 3e-4, 1e-3]


def learning_rate(step):
    if step >= len(SCHEDULE):
        raise ValueError(f"the schedule has {len(SCHEDULE)} learning rates, none for step {step}")
    return SCHEDULE[step]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(256, 3, 64, 64)
    labels = (images[:, 0].mean(dim=(1, 2)) > 0).long()
    loader = DataLoader(TensorDataset(images, labels), args.batch_size, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(8),
        nn.Flatten(),
        nn.Linear(32 * 64, 2),
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=SCHEDULE[0], momentum=0.9)
    step = 0
    for _ in range(args.epochs):
        for x, y in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            print(f"step {step}: loss {loss.item():.4f}")
            step += 1


if __name__ == "__main__":
    main()
