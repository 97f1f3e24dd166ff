"""Train with an optimizer that is written by hand (Lion, https://arxiv.org/abs/2302.06675)."""

import argparse
import hashlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Lion:
    """Update by the sign of an average of gradients."""

    def __init__(self, params, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
        self.params = [p for p in params if p.requires_grad]
        self.averages = [torch.zeros_like(p) for p in self.params]
        self.lr = lr
        self.beta1 = beta1
        self.beta2 = beta2
        self.weight_decay = weight_decay

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self):
        for p, average in zip(self.params, self.averages, strict=True):
            if p.grad is None:
                continue
            update = torch.lerp(p.grad, average, self.beta1).sign_()
            p.mul_(1 - self.lr * self.weight_decay).sub_(update, alpha=self.lr)
            average.lerp_(p.grad, 1 - self.beta2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batchsize", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args()

    torch.manual_seed(9)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    targets = torch.randint(4, (512,))
    images = torch.randn(512, 3, 64, 64)
    images[torch.arange(512), targets % 3] *= 1.5
    loader = DataLoader(TensorDataset(images, targets), batch_size=args.batchsize, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ELU(),
        nn.AvgPool2d(4),
        nn.Conv2d(32, 32, 3),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(32 * 14 * 14, 4),
    ).to(device)
    optimizer = Lion(model.parameters(), lr=args.lr, weight_decay=0.1)

    for epoch in range(args.epochs):
        for x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.4f}")

    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().cpu().numpy().tobytes())
    print("loss", repr(loss.item()))
    print("weights", digest.hexdigest())


if __name__ == "__main__":
    main()
