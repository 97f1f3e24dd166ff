"""Train from a slow data set that worker processes load."""

import argparse
import hashlib
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class SlowImages(Dataset):
    """Images that take two milliseconds each to decode."""

    def __init__(self, count=512):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 64, 64, generator=generator)
        label = int(torch.randint(10, (), generator=generator))
        time.sleep(0.002)
        return image + 0.1 * label, label


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", "-b", type=int, default=32)
    parser.add_argument("--workers", "-j", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    use_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if use_cuda else "cpu")
    loader = DataLoader(
        SlowImages(),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=use_cuda,
    )
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(32 * 64, 10),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    criterion = nn.CrossEntropyLoss()

    for epoch in range(args.epochs):
        waited = 0.0
        end = time.perf_counter()
        for images, labels in loader:
            waited += time.perf_counter() - end
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            end = time.perf_counter()
        print(f"epoch {epoch}: loss {loss.item():.4f}, waited {waited:.2f} s for data")

    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
