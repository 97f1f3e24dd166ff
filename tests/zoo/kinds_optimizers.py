"""Kinds of optimizers and schedules; each function is a factory of a `Workload`."""

from __future__ import annotations

import torch
from kinds_data import Items, cross_entropy, network, pair, trained
from torch import nn

from rightbatch import Workload


def with_optimizer(make, **fields):
    model = network()
    optimizer = make(model)
    return trained(model, cross_entropy, Items(pair), optimizer=optimizer, **fields)


def lbfgs():
    """`step` needs a closure."""
    return with_optimizer(lambda model: torch.optim.LBFGS(model.parameters(), max_iter=3))


class Sharpness(torch.optim.Optimizer):
    """Two passes a step; the closure is asked for inside."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    def step(self, closure=None):
        assert closure is not None, "sharpness-aware minimization requires a closure"
        with torch.enable_grad():
            closure()


def sharpness_aware():
    return with_optimizer(lambda model: Sharpness(model.parameters()))


def several_optimizers():
    """A generator's and a discriminator's optimizer in a list."""
    first, second = network(), network()
    model = nn.ModuleList([first, second])
    optimizers = [torch.optim.Adam(first.parameters()), torch.optim.Adam(second.parameters())]
    return Workload(
        model=model,
        loss=lambda model, batch: cross_entropy(model[0], batch),
        optimizer=optimizers,
        data=Items(pair),
    )


def adafactor():
    return with_optimizer(lambda model: torch.optim.Adafactor(model.parameters()))


def muon():
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 2, bias=False))
    optimizer = torch.optim.Muon(model.parameters())
    return trained(model, cross_entropy, Items(pair), optimizer=optimizer)


class Lion(torch.optim.Optimizer):
    """An optimizer of one's own."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum, (first, second) = state["momentum"], group["betas"]
                update = momentum.lerp(parameter.grad, 1 - first).sign()
                parameter.add_(update, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)


def lion():
    return with_optimizer(lambda model: Lion(model.parameters()))


class ScheduleFree(torch.optim.Optimizer):
    """Keeps its state in attributes, and has a mode of its own for training and evaluation."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, {"lr": lr, "weight_sum": 0.0})
        self.steps = 0

    def train(self):
        pass

    def eval(self):
        pass

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["weight_sum"] += group["lr"] ** 2
            for parameter in group["params"]:
                if parameter.grad is not None:
                    average = self.state[parameter].setdefault("z", parameter.clone())
                    average.sub_(parameter.grad, alpha=group["lr"])
                    parameter.lerp_(average, 1 / self.steps)


def schedule_free():
    return with_optimizer(lambda model: ScheduleFree(model.parameters()))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(1000, 16, sparse=True), nn.Linear(16, 2)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))


def _tokens(index):
    return torch.randint(1000, (8,), generator=torch.Generator().manual_seed(index)), index % 2


def sparse_gradients():
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return trained(model, cross_entropy, Items(_tokens), optimizer=optimizer)


def sparse_gradients_clipped():
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return trained(model, cross_entropy, Items(_tokens), optimizer=optimizer, clip_norm=1.0)


def sparse_adam():
    model = nn.Embedding(1000, 2, sparse=True)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).mean(1), batch[1])

    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.1)
    return trained(model, loss, Items(_tokens), optimizer=optimizer)


class Unfreezing:
    """A loss that adds a layer's parameters to the optimizer later, as fine-tuning scripts do."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == 3:
            model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(model[0].parameters())})
        return cross_entropy(model, batch)


def groups_added_later():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters(), 1e-3)
    return trained(model, Unfreezing(optimizer), Items(pair), optimizer=optimizer)


def in_backward():
    """Each parameter is updated in the backward pass, and its gradient is freed there."""
    model = network()
    own = {p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()}

    def update(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return trained(model, cross_entropy, Items(pair), optimizer=optimizer)


def adam_fused():
    return with_optimizer(lambda model: torch.optim.AdamW(model.parameters(), fused=True))


def rate_as_tensor():
    return with_optimizer(
        lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))
    )


class Rateless(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.01)


def without_a_rate():
    return with_optimizer(lambda model: Rateless(model.parameters()))


def rates_of_its_own():
    """huggingface/transformers#11612: this Adafactor has lr=None."""
    from transformers import Adafactor

    return with_optimizer(
        lambda model: Adafactor(model.parameters(), relative_step=True, warmup_init=True)
    )


class Schedule:
    def step(self):
        pass


def schedules_of_ones_own():
    return with_optimizer(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        scheduler=lambda optimizer, steps: Schedule(),
    )


def parameters_left_out():
    """The optimizer holds a part of the parameters that require gradients."""
    return with_optimizer(lambda model: torch.optim.SGD(model[2].parameters(), lr=0.01))


def by_plateau():
    return with_optimizer(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    )


def one_cycle_of_fixed_steps():
    """The schedule raises after its 20 steps."""
    return with_optimizer(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=20
        ),
    )


def one_cycle():
    return with_optimizer(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=steps
        ),
    )


def by_lambda():
    return with_optimizer(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(0.0, 1 - step / steps)
        ),
    )


KINDS = {
    function.__name__: function
    for function in (
        lbfgs,
        sharpness_aware,
        several_optimizers,
        adafactor,
        muon,
        lion,
        schedule_free,
        sparse_gradients,
        sparse_gradients_clipped,
        sparse_adam,
        groups_added_later,
        in_backward,
        adam_fused,
        rate_as_tensor,
        without_a_rate,
        rates_of_its_own,
        schedules_of_ones_own,
        parameters_left_out,
        by_plateau,
        one_cycle_of_fixed_steps,
        one_cycle,
        by_lambda,
    )
}
