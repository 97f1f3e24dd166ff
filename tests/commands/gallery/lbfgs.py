"""Fit an image filter with L-BFGS."""

import argparse
import hashlib

import torch
import torch.nn as nn
import torch.optim as optim


class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.conv2(torch.tanh(self.conv1(x)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="steps to run")
    parser.add_argument("--lr", type=float, default=0.8)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Filter().to(device)
    criterion = nn.MSELoss()
    optimizer = optim.LBFGS(model.parameters(), lr=args.lr, max_iter=4, history_size=10)

    for i in range(args.steps):
        generator = torch.Generator().manual_seed(i)
        image = torch.rand(args.batch, 3, 64, 64, generator=generator).to(device)
        blurred = nn.functional.avg_pool2d(image, 3, stride=1, padding=1)

        def closure(image=image, blurred=blurred):
            optimizer.zero_grad()
            loss = criterion(model(image), blurred)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        print(f"STEP: {i}, loss: {loss.item():.6f}")

    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
