"""Train an MLP on image patches.

Usage: config_file.py [FILE.json ...] [KEY=VALUE ...], for example `optim.batch=8 optim.lr=0.01`.
Later arguments override earlier ones.
"""

import ast
import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

DEFAULTS = {
    "seed": 0,
    "data": {"examples": 512, "noise": 0.5},
    "model": {"width": 256, "depth": 2},
    "optim": {"batch": 32, "lr": 0.05, "momentum": 0.9, "epochs": 2},
}


def merge(config, changes):
    for key, value in changes.items():
        if key not in config:
            raise KeyError(f"unknown key {key!r}; known are {', '.join(config)}")
        if isinstance(config[key], dict):
            merge(config[key], value)
        else:
            config[key] = value


def load_config(arguments):
    config = json.loads(json.dumps(DEFAULTS))
    for argument in arguments:
        if argument.endswith(".json"):
            changes = json.loads(Path(argument).read_text())
        else:
            path, text = argument.split("=", 1)
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = text
            for key in reversed(path.split(".")):
                value = {key: value}
            changes = value
        merge(config, changes)
    return config


class PatchMLP(nn.Module):
    """Apply the same MLP to patches of 4x4 pixels, and average over the patches."""

    def __init__(self, width, depth):
        super().__init__()
        layers = [nn.Linear(48, width), nn.GELU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.GELU()]
        self.patches = nn.PixelUnshuffle(4)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 4)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.layers(x).mean(dim=1))


def get_data(count, noise, generator):
    """Sine gratings of four frequencies."""
    y = torch.randint(4, (count,), generator=generator)
    wave = torch.sin(torch.arange(64) * (y[:, None] + 1) * 0.3)
    x = wave[:, None, None, :] + noise * torch.randn(count, 3, 64, 64, generator=generator)
    return x, y


def main():
    cfg = load_config(sys.argv[1:])
    print(json.dumps(cfg, indent=2))
    torch.manual_seed(cfg["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"

    generator = torch.Generator().manual_seed(cfg["seed"])
    x, y = get_data(cfg["data"]["examples"], cfg["data"]["noise"], generator)
    model = PatchMLP(**cfg["model"]).to(device)
    opt = torch.optim.SGD(
        model.parameters(), lr=cfg["optim"]["lr"], momentum=cfg["optim"]["momentum"]
    )
    for epoch in range(cfg["optim"]["epochs"]):
        for index in torch.randperm(len(x), generator=generator).split(cfg["optim"]["batch"]):
            logits = model(x[index].to(device))
            loss = nn.functional.cross_entropy(logits, y[index].to(device))
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(f"epoch {epoch}: {loss.item():.3f}")

    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
