"""Train with sharpness-aware minimization (SAM, https://arxiv.org/abs/2010.01412)."""

import argparse
import hashlib

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


class SAM(torch.optim.Optimizer):
    """Step with the gradient at the worst point nearby; `base_optimizer` does the update."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        if rho < 0:
            raise ValueError(f"rho must not be negative, got {rho}")
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        """Move to the worst point nearby."""
        norm = self._grad_norm() + 1e-12
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                self.state[p]["start"] = p.detach().clone()
                p.add_(p.grad, alpha=float(group["rho"] / norm))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        """Return to where `first_step` began, and update from there."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p].pop("start"))
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("SAM needs a closure that computes the gradients once more")
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
        self.second_step()

    def _grad_norm(self):
        norms = [
            p.grad.norm()
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        return torch.stack(norms).norm()


def conv_block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", default=32, type=int)
    parser.add_argument("--epochs", default=2, type=int)
    parser.add_argument("--learning_rate", default=0.05, type=float)
    parser.add_argument("--momentum", default=0.9, type=float)
    parser.add_argument("--rho", default=0.05, type=float, help="Rho parameter for SAM.")
    parser.add_argument("--label_smoothing", default=0.1, type=float)
    args = parser.parse_args()

    torch.manual_seed(42)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = torch.randint(6, (384,))
    images = torch.randn(384, 3, 64, 64) + labels.view(-1, 1, 1, 1) * 0.3
    train = DataLoader(TensorDataset(images, labels), batch_size=args.batch_size, shuffle=True)

    model = nn.Sequential(
        conv_block(3, 24), nn.MaxPool2d(4), conv_block(24, 16), nn.Flatten(), nn.Linear(4096, 6)
    ).to(device)
    optimizer = SAM(
        model.parameters(),
        torch.optim.SGD,
        rho=args.rho,
        lr=args.learning_rate,
        momentum=args.momentum,
    )
    for epoch in range(args.epochs):
        model.train()
        for inputs, targets in train:
            inputs, targets = inputs.to(device), targets.to(device)

            # first forward-backward step
            loss = F.cross_entropy(model(inputs), targets, label_smoothing=args.label_smoothing)
            loss.backward()
            optimizer.first_step(zero_grad=True)

            # second forward-backward step
            F.cross_entropy(model(inputs), targets, label_smoothing=args.label_smoothing).backward()
            optimizer.second_step(zero_grad=True)
        print(f"epoch {epoch}: loss {loss.item():.4f}")

    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    print("loss", repr(loss.item()))
    print("weights", digest.hexdigest())


if __name__ == "__main__":
    main()
