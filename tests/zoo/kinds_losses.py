"""Kinds of losses and of what they use, after public reports; each is a factory of a `Workload`."""

from __future__ import annotations

import torch
from kinds_data import Items, cross_entropy, network, pair, trained
from torch import nn


class Energy(nn.Module):
    """Forces are the gradient of an energy, which the model computes in its forward pass."""

    def __init__(self):
        super().__init__()
        self.net = network(classes=1)

    def forward(self, x):
        x = x.detach().requires_grad_(True)
        energy = self.net(x).squeeze(1)
        (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=self.training)
        return energy, -slope


def forces():
    """Lightning-AI/pytorch-lightning#4487 and #10287: validation without gradients fails."""

    def loss(model, batch):
        energy, force = model(batch[0])
        return (energy - batch[1]).square().mean() + force.square().mean()

    return trained(Energy(), loss, Items(pair), evaluation_data=Items(pair, 20))


def gradient_penalties():
    """pytorch/pytorch#69217: a part of the loss is a gradient's norm."""

    def loss(model, batch):
        x = batch[0].clone().requires_grad_(True)
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return nn.functional.cross_entropy(out, batch[1]) + (slope.norm(dim=1) - 1).square().mean()

    return trained(network(), loss, Items(pair), evaluation_data=Items(pair, 20))


class Teaching:
    """A loss that holds a frozen teacher."""

    def __init__(self):
        wide = nn.Sequential(nn.Linear(64, 4000), nn.ReLU(), nn.Linear(4000, 2))
        self.teacher = wide.eval().requires_grad_(False)

    def __call__(self, model, batch):
        with torch.no_grad():
            wanted = self.teacher(batch[0])
        return nn.functional.mse_loss(model(batch[0]), wanted)


def teachers():
    return trained(network(), Teaching(), Items(pair))


class Margin(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, features, labels):
        return nn.functional.cross_entropy(features @ self.weight, labels)


def weights_of_the_loss():
    """KevinMusgrave/pytorch-metric-learning#534: the loss has weights that are trained, too."""
    model, margin = network(), Margin()
    parameters = [*model.parameters(), *margin.parameters()]
    return trained(
        model,
        lambda model, batch: margin(model(batch[0]), batch[1]),
        Items(pair),
        optimizer=torch.optim.SGD(parameters, lr=0.1),
    )


def weights_in_the_model():
    """The way round: the loss is a part of the model."""
    model = network()
    model.margin = margin = Margin()
    return trained(
        model,
        lambda model, batch: margin(model[:3](batch[0]), batch[1]),
        Items(pair),
        predict=lambda model, batch: model[:3](batch[0]),
    )


def learned_factors():
    """Factors of several losses are learned, and are a parameter of no module."""
    model, factor = network(), nn.Parameter(torch.zeros(()))
    return trained(
        model,
        lambda model, batch: cross_entropy(model, batch) * (-factor).exp() + factor,
        Items(pair),
        optimizer=torch.optim.Adam([*model.parameters(), factor]),
    )


def criteria_as_losses():
    """A criterion of outputs and targets instead of a function of model and batch."""
    return trained(network(), nn.CrossEntropyLoss(), Items(pair))


KINDS = {
    function.__name__: function
    for function in (
        forces,
        gradient_penalties,
        teachers,
        weights_of_the_loss,
        weights_in_the_model,
        learned_factors,
        criteria_as_losses,
    )
}
