"""A small convolutional network with GroupNorm on CIFAR-10 images, trained by plain SGD."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rightbatch as rb

IMAGES = Path(os.environ["RIGHTBATCH_DATA"]) / "cifar10_small.npz"
LEARNING_RATE = 0.02  # for batch size 16 (benchmarks/results/tune.json)
EVALUATED = 500


def images(which, count=None):
    with np.load(IMAGES) as stored:
        pixels = torch.from_numpy(stored[f"{which}_images"][:count]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(stored[f"{which}_labels"][:count]).long()
    return TensorDataset((pixels.float() / 255 - 0.5).contiguous(), labels)


def network():
    def block(channels, more):
        return [
            nn.Conv2d(channels, more, 3, padding=1),
            nn.GroupNorm(8, more),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    features = [*block(3, 16), *block(16, 32), *block(32, 64)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def workload():
    model = network()
    return rb.Workload(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9),
        images("train"),
        evaluation_data=images("test", EVALUATED),
        name="cifar",
    )
